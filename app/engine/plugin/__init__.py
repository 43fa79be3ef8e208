"""softserve's plugin for vLLM, which loads it in every process of the engine.

The modules here run inside vLLM: they are imported by it alone, after its environment is set, so
they may import it at their top.
"""


def register() -> None:
    """The entry point `softserve` of `vllm.general_plugins`; it may be called more than once."""
    from app.engine.plugin import (
        active_loras,
        cpu_lora,
        dora,
        embeddings,
        forking,
        int8,
        lifetime,
        pausing,
        row_operators,
        row_order,
        seeds,
        sentence_pieces,
        seq2seq,
        text_models,
    )

    lifetime.end_with_parent()
    active_loras.register()
    cpu_lora.register()
    dora.register()
    embeddings.register()
    forking.register()
    int8.register()
    pausing.register()
    row_operators.register()
    row_order.register()
    seeds.register()
    sentence_pieces.register()
    seq2seq.register()
    text_models.register()
