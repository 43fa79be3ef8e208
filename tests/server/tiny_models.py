"""Tiny random models, whose servers start in seconds and generate fast."""

import shutil
from pathlib import Path
from typing import Any

from app.engine.model.default import default_model
from app.engine.protocol import ModuleShape
from app.settings import Settings

# Of a server: it needs little memory.
SMALL = ("--context-window", "4096", "--kv-cache-gib", "0.1")
HIDDEN_SIZE = 64
SHAPE = {
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 49152,
    "max_position_embeddings": 4096,
}
LLAMA = {"intermediate_size": 128, "num_key_value_heads": 2}
# Of the model that `make_llama` makes.
LLAMA_MODULES = {
    f"model.layers.{layer}.self_attn.{name}": ModuleShape("linear", HIDDEN_SIZE, HIDDEN_SIZE)
    for layer in range(2)
    for name in ("q_proj", "v_proj")
}


def make_llama(folder: Path) -> Path:
    """One that takes LoRAs and soft prompts."""
    return make_model(folder, "llama", **LLAMA)


def make_model(folder: Path, model_type: str, **config: Any) -> Path:
    """A model with the tokenizer of the default model."""
    import torch
    from rich.progress import Progress
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **SHAPE, **config), dtype=torch.float32
    )
    model.save_pretrained(folder)
    for file in default_model(Settings().cache_dir, Progress(disable=True)).glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


SENTENCES = [
    f"{who} {does} {what} {where}."
    for who in ("The old dog", "A small cat", "My neighbour", "The river", "Every teacher", "She")
    for does in ("likes", "watches", "finds", "remembers", "never sees", "carries")
    for what in ("the house", "green apples", "a long story", "the morning rain", "nothing new")
    for where in ("in the garden", "near Paris", "behind the mountain", "at school", "today")
]
T5_PIECES, T5_SENTINELS = 64, 10
BART_TOKENS = 400
BART_SPECIAL = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>"}


def make_t5(folder: Path) -> Path:
    """An encoder-decoder model as FLAN-T5, with a SentencePiece tokenizer that is trained here."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "t5",
        vocab_size=T5_PIECES + T5_SENTINELS,
        d_model=HIDDEN_SIZE,
        d_kv=32,
        d_ff=128,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        # Fewer than a server of it is asked for.
        n_positions=32,
    )
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    for name, weights in model.named_parameters():
        if "relative_attention_bias" in name:
            torch.nn.init.normal_(weights)
        elif "block" in name and weights.dim() == 2:
            # As transformers begins, all prompts end in the same token.
            weights.data *= 2.5
    model.lm_head.weight = torch.nn.Parameter(torch.randn(config.vocab_size, HIDDEN_SIZE))
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    _save_sentence_pieces(folder)
    return folder


def _save_sentence_pieces(folder: Path) -> None:
    import sentencepiece
    from transformers import T5Tokenizer

    with (folder / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES),
            model_writer=file,
            vocab_size=T5_PIECES,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    T5Tokenizer.from_pretrained(folder, extra_ids=T5_SENTINELS).save_pretrained(folder)


def make_bart(folder: Path) -> Path:
    """One as BART for summaries, with a byte-level BPE tokenizer that is trained here."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bart",
        vocab_size=BART_TOKENS,
        d_model=HIDDEN_SIZE,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
    )
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    for name, weights in model.named_parameters():
        # As transformers begins, all prompts end in the same token, which comes again and again.
        if weights.dim() == 2 and ("layers" in name or "embed_positions" in name):
            weights.data *= 5.0
    # Whole characters, and an end now and then.
    model.final_logits_bias[:, 4:260] = -1.0
    model.final_logits_bias[:, 2] = 0.2
    # What such a model has there; the last three are for transformers' own requests.
    model.generation_config.update(
        forced_bos_token_id=0,
        forced_eos_token_id=2,
        num_beams=4,
        no_repeat_ngram_size=3,
        min_length=12,
    )
    model.save_pretrained(folder)
    _save_byte_pairs(folder)
    return folder


def _save_byte_pairs(folder: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import RobertaProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        SENTENCES,
        vocab_size=BART_TOKENS,
        special_tokens=list(BART_SPECIAL.values()),
        show_progress=False,
    )
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    special = {f"{name}_token": text for name, text in BART_SPECIAL.items()}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, **special)
    fast.save_pretrained(folder)
