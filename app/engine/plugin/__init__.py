"""softserve's plugin for vLLM, which loads it in every process of the engine.

The modules here run inside vLLM: they are imported by it alone, after its environment is set, so
they may import it at their top.
"""


def register() -> None:
    """The entry point `softserve` of `vllm.general_plugins`; it may be called more than once."""
    from app.engine.plugin import cpu_lora, dora, int8, lifetime, row_order, text_models

    lifetime.end_with_parent()
    cpu_lora.register()
    dora.register()
    int8.register()
    row_order.register()
    text_models.register()
