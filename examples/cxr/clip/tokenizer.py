"""A CLIP-like tokenizer trained on the captions at hand: the offline counterpart of CLIP's own vocabulary."""

from __future__ import annotations

from collections.abc import Iterable

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

END, START, PAD = "<|endoftext|>", "<|startoftext|>", "<|pad|>"


def train_tokenizer(
    captions: Iterable[str], *, vocab_size: int = 2000, context_length: int = 77
) -> transformers.PreTrainedTokenizerFast:
    """Trains a lower-case byte-level BPE on captions; frequent words become one token, unknown words several.

    Args:
        captions: The texts to learn from. The same captions give the same vocabulary.
        vocab_size: Upper bound of the vocabulary, the 256 bytes and three special tokens included.
        context_length: Longest token sequence, start and end token included.

    Raises:
        ValueError: If there is no caption with text.
    """
    captions = [caption for caption in captions if caption.strip()]
    if not captions:
        raise ValueError("captions: none with text given, at least one is needed to train a tokenizer")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    # The end token comes first: Hugging Face's CLIP treats an end token with id 2 in a special, historical way.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, START, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START, END)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        add_prefix_space=True,  # transformers 4 would otherwise switch it off in the trained tokenizer
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        model_max_length=context_length,
        model_input_names=["input_ids"],
    )
