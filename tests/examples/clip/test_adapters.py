import copy
import json
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import save_file

from cxr.clip import (
    ClipModel,
    HuggingFaceClip,
    OpenClip,
    huggingface_from_openai,
    load_checkpoint,
    load_clip,
    small_clip,
    train_tokenizer,
)

CAPTIONS = [
    "adenopathy is present, pulmonary effusion is present",
    "cardiomegaly is present",
    "no pneumothorax",
    "round(ed) atelectasis is present",
]
UNSEEN = "Zebra-like Übergang, no µ"


@pytest.fixture(scope="module")
def open_clip():
    return pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def open_clip_vit(open_clip):
    """A real ViT-B/32 with OpenAI's activation and random weights; its state dict is what CheXzero's files hold."""
    return load_clip("open_clip:ViT-B-32-quickgelu").eval()


@pytest.fixture(scope="module")
def openai_tokenizer(open_clip, tmp_path_factory):
    """OpenAI's own vocabulary for Hugging Face, from the copy that open_clip brings along."""
    bpe = open_clip.SimpleTokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {special.get(token, token): i for token, i in bpe.encoder.items()}
    folder = tmp_path_factory.mktemp("openai")
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, bpe.bpe_ranks)]))
    return transformers.CLIPTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def huggingface_vit(openai_tokenizer):
    """A real ViT-B/32: the configuration's defaults are openai/clip-vit-base-patch32."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return HuggingFaceClip(transformers.CLIPModel(transformers.CLIPConfig()), openai_tokenizer).eval()


@pytest.fixture(scope="module")
def siglip():
    tokenizer = train_tokenizer(CAPTIONS, context_length=16)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vocabulary = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 2}
    config = transformers.SiglipConfig(
        text_config={**sizes, **vocabulary, "max_position_embeddings": 16, "projection_size": 24},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return HuggingFaceClip(transformers.SiglipModel(config), tokenizer).eval()


def images(model, n=2, channels=3):
    return torch.randn(n, channels, model.image_size, model.image_size, generator=torch.Generator().manual_seed(3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fixture", "image_size", "embedding_size"),
    [("huggingface_vit", 224, 512), ("open_clip_vit", 224, 512), ("siglip", 32, 24)],
)
def test_real_models_speak_the_interface(request, fixture, image_size, embedding_size):
    model = request.getfixturevalue(fixture)
    assert (model.image_size, model.embedding_size) == (image_size, embedding_size)
    check_interface(model)


@pytest.mark.parametrize("name", ["small", "small-conv"])
def test_small_models_speak_the_interface(name):
    check_interface(load_clip(name, captions=CAPTIONS, image_size=32))


def check_interface(model):
    tokens = model.tokenize(CAPTIONS)
    assert tokens.dtype == torch.long
    v, t = model.encode_image(images(model)), model.encode_text(tokens)
    assert v.shape == (2, model.embedding_size)
    assert t.shape == (4, model.embedding_size)
    assert not torch.allclose(v.norm(dim=1), torch.ones(2), atol=1e-3), "embeddings come before normalisation"
    # a text's embedding does not depend on the texts it is batched with
    torch.testing.assert_close(model.encode_text(model.tokenize(CAPTIONS[1:2])), t[1:2], atol=1e-5, rtol=1e-4)
    assert torch.pdist(t).min() > 1e-4, "different texts differ"
    # grey images are the same as three equal channels
    grey = images(model, channels=1)
    torch.testing.assert_close(model.encode_image(grey), model.encode_image(grey.repeat(1, 3, 1, 1)))
    # the first weights of both encoders and the scale learn
    parts = ("vis", "token_embedding", "scale")
    first = [next(weight for name, weight in model.named_parameters() if part in name) for part in parts]
    for part, gradient in zip(parts, torch.autograd.grad(model.logit_scale * (v @ t.T).sum(), first)):
        assert gradient.abs().sum() > 0, part
    assert model.logit_scale.shape == ()
    assert model.logit_scale >= 1
    with pytest.raises(ValueError, match=r"images: .* needed"):
        model.encode_image(images(model)[:, :, 1:])
    with pytest.raises(ValueError, match=r"images: .*uint8"):
        model.encode_image(images(model).to(torch.uint8))


def test_siglip_has_a_bias_and_clip_none(siglip, huggingface_vit, open_clip_vit):
    assert siglip.logit_bias.shape == ()
    assert siglip.logit_bias.requires_grad
    assert huggingface_vit.logit_bias is None
    assert open_clip_vit.logit_bias is None


@pytest.mark.parametrize("fixture", ["huggingface_vit", "siglip"])
def test_embeddings_are_those_of_the_models_own_forward(request, fixture):
    model = request.getfixturevalue(fixture)
    tokens = model.tokenize(CAPTIONS)
    with torch.no_grad():
        output = model.model(input_ids=tokens, pixel_values=images(model))
        v, t = (
            torch.nn.functional.normalize(x) for x in (model.encode_image(images(model)), model.encode_text(tokens))
        )
        logits = model.logit_scale * v @ t.T + (0 if model.logit_bias is None else model.logit_bias)
    torch.testing.assert_close(v, output.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(t, output.text_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits, output.logits_per_image, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fixture", ["huggingface_vit", "siglip"])
def test_transformers_4_returns_the_tensor_itself(request, fixture, monkeypatch):
    model = request.getfixturevalue(fixture)
    tokens = model.tokenize(CAPTIONS)
    with torch.no_grad():
        expected = model.encode_image(images(model)), model.encode_text(tokens)
        for method in ("get_image_features", "get_text_features"):
            features = getattr(model.model, method)

            def version_4(features=features, **inputs):
                output = features(**inputs)
                return output if isinstance(output, torch.Tensor) else output.pooler_output

            monkeypatch.setattr(model.model, method, version_4)
        torch.testing.assert_close((model.encode_image(images(model)), model.encode_text(tokens)), expected)


@pytest.mark.slow
def test_openai_state_dicts_give_the_same_embeddings_in_both_libraries(open_clip_vit, huggingface_vit, tmp_path):
    state = open_clip_vit.model.state_dict()
    torch.save(state, tmp_path / "chexzero.pt")
    model = copy.deepcopy(huggingface_vit)
    load_checkpoint(model, tmp_path / "chexzero.pt")
    tokens = open_clip_vit.tokenize([*CAPTIONS, UNSEEN])
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_image(images(model)), open_clip_vit.encode_image(images(model)), atol=2e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            model.encode_text(model.tokenize([*CAPTIONS, UNSEEN])),
            open_clip_vit.encode_text(tokens),
            atol=2e-5,
            rtol=1e-4,
        )
    torch.testing.assert_close(model.logit_scale, open_clip_vit.logit_scale)
    assert sum(x.numel() for x in huggingface_from_openai(state).values()) == sum(x.numel() for x in state.values())


@pytest.mark.slow
def test_chexzero_checkpoint_by_name(open_clip_vit, tmp_path):
    """As OpenAI's originals: sizes among the weights, half precision, here below DataParallel and a training script."""
    weights = {f"module.{key}": value.half() for key, value in open_clip_vit.model.state_dict().items()}
    sizes = {"module.input_resolution": torch.tensor(224), "module.context_length": torch.tensor(77)}
    torch.save({"epoch": 3, "state_dict": weights | sizes}, tmp_path / "best.pth")
    model = load_clip("open_clip:ViT-B-32-quickgelu", init=tmp_path / "best.pth").eval()
    for key, value in model.model.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, weights[f"module.{key}"].float())


def test_the_architecture_with_the_wrong_activation_warns(open_clip, monkeypatch):
    from cxr.clip import load

    monkeypatch.setattr(open_clip, "create_model", lambda name: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.warns(UserWarning, match="open_clip:ViT-B-32-quickgelu"), pytest.raises(KeyboardInterrupt):
        load.load_open_clip("ViT-B-32", seed=0, replaced=True)


def test_openai_models_share_the_adapter(open_clip_vit, open_clip):
    """OpenAI's package names the image size otherwise, returns int32 tokens and holds float16 weights."""

    class OpenAI(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = torch.nn.Linear(3 * 16, 8).half()
            self.visual.input_resolution = 4
            self.token_embedding = torch.nn.Embedding(49408, 8).half()
            self.logit_scale = torch.nn.Parameter(torch.tensor(2.0))

        def encode_image(self, image):
            return self.visual(image.type(self.visual.weight.dtype).flatten(1))

        def encode_text(self, text):
            return self.token_embedding(text).sum(dim=1)

    model = OpenClip(OpenAI(), lambda texts: open_clip.get_tokenizer("ViT-B-32")(texts).int())
    assert (model.image_size, model.embedding_size) == (4, 8)
    assert model.encode_image(images(model)).dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    check_interface(model)


def test_huggingface_directories_load_with_and_without_their_weights(tmp_path):
    model = small_clip(CAPTIONS, image_size=32)
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    other = small_clip(CAPTIONS, image_size=32, seed=1)
    save_file({k: v.contiguous() for k, v in other.model.state_dict().items()}, tmp_path / "other.safetensors")
    for name in (f"hf:{tmp_path / 'model'}", str(tmp_path / "model")):
        for init, expected in ((None, model), (tmp_path / "other.safetensors", other)):
            loaded = load_clip(name, init=init, image_size=32)
            assert torch.equal(loaded.tokenize([UNSEEN]), expected.tokenize([UNSEEN]))
            torch.testing.assert_close(loaded.encode_image(images(loaded)), expected.encode_image(images(loaded)))
            torch.testing.assert_close(
                loaded.encode_text(loaded.tokenize(CAPTIONS)), expected.encode_text(loaded.tokenize(CAPTIONS))
            )


@pytest.mark.parametrize("name", ["small", "small-conv"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_own_checkpoints_load(name, suffix, tmp_path):
    source = load_clip(name, captions=CAPTIONS, image_size=32, seed=5)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"model": source.state_dict()}, path)
    else:
        save_file(source.state_dict(), path)
    loaded = load_clip(name, captions=CAPTIONS, image_size=32, init=path)
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, source.state_dict()[key])


def test_a_checkpoint_that_does_not_fit_is_explained_and_changes_nothing(tmp_path):
    model = small_clip(CAPTIONS, image_size=32)
    before = copy.deepcopy(model.state_dict())
    state = {key: value + 1 for key, value in before.items()}
    state["model.extra"] = torch.zeros(1)
    state["model.logit_scale"] = torch.zeros(2)
    del state["model.visual_projection.weight"]
    torch.save(state, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="does not fit") as error:
        load_checkpoint(model, tmp_path / "bad.pt")
    for part in (
        "missing keys (1): model.visual_projection.weight",
        "unexpected keys (1): model.extra",
        "model.logit_scale (2,) for ()",
        f"fitting keys ({len(state) - 2} of {len(state)}): model.text_model",
    ):
        assert part in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("content", "unexpected"),
    [
        # names as in the authors' files: MedKLIP's of nn.DataParallel, MedCLIP's and GLoRIA's of two encoders
        ({"model": {"module.res_features.0.weight": 0, "module.decoder.norm.bias": 0}, "epoch": 3}, "res_features.0"),
        ({"vision_model.model.layers.0.norm.weight": 0, "text_model.projection_head.weight": 0}, "vision_model.model"),
        ({"state_dict": {"gloria.img_encoder.model.conv1.weight": 0}, "hyper_parameters": {"lr": 0.1}}, "gloria.img"),
    ],
)
def test_checkpoints_of_the_other_systems_are_told_apart(tmp_path, content, unexpected):
    """Their encoders are others: what fits, nothing, and what does not is named."""
    nested = content.get("model", content.get("state_dict", content))
    nested.update({key: torch.zeros(2) for key in nested})
    torch.save(content, tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match=rf"unexpected keys \({len(nested)}\): {unexpected}") as error:
        load_checkpoint(small_clip(CAPTIONS, image_size=32), tmp_path / "theirs.pt")
    assert f"fitting keys (0 of {len(nested)}): none" in str(error.value)


class Payload:
    def __reduce__(self):
        return print, ("a checkpoint must not run code",)


def test_unreadable_checkpoints_are_named(tmp_path):
    model = small_clip(CAPTIONS, image_size=32)
    torch.save({"state_dict": Payload()}, tmp_path / "code.pt")
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint")
    (tmp_path / "noise.safetensors").write_bytes(b"not a checkpoint")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    for name in ("code.pt", "noise.pt", "noise.safetensors", "empty.pt"):
        with pytest.raises(ValueError, match=f"init: .*{name}"):
            load_checkpoint(model, tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"init: .*gone\.pt"):
        load_checkpoint(model, tmp_path / "gone.pt")


def test_the_tokenizer_returns_the_text_unknown_words_included():
    tokenizer = train_tokenizer(CAPTIONS * 10)
    for text in [*CAPTIONS, UNSEEN]:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text.lower()
    assert len(tokenizer("cardiomegaly is present")["input_ids"]) == 5, "a frequent word is one token"


def test_long_texts_are_cut_and_keep_their_end():
    model = small_clip(CAPTIONS, image_size=32, context_length=12)
    tokens = model.tokenize([" ".join(CAPTIONS), CAPTIONS[0]])
    assert tokens.shape == (2, 12)
    assert tokens[0, -1] == model.tokenizer.eos_token_id
    assert torch.isfinite(model.encode_text(tokens)).all()


def test_the_same_captions_and_seed_give_the_same_model_and_leave_the_global_state_alone():
    state = torch.random.get_rng_state()
    for name in ("small", "small-conv"):
        first, second, other = (load_clip(name, captions=CAPTIONS, image_size=32, seed=s) for s in (7, 7, 8))
        weights = [torch.nn.utils.parameters_to_vector(model.parameters()) for model in (first, second, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        assert json.loads(first.tokenizer.backend_tokenizer.to_str()) == json.loads(
            second.tokenizer.backend_tokenizer.to_str()
        )
    assert torch.equal(state, torch.random.get_rng_state())


def test_bad_requests_are_named(tmp_path):
    with pytest.raises(ValueError, match="model: 'tiny' is not known"):
        load_clip("tiny")
    with pytest.raises(ValueError, match="captions: none given"):
        load_clip("small")
    with pytest.raises(ValueError, match="captions: none with text"):
        load_clip("small", captions=["", " "])
    model = small_clip(CAPTIONS, image_size=32)
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"image_size: 224 given, .* takes 32"):
        load_clip(str(tmp_path), image_size=224)


def test_a_tokenizer_that_is_not_the_models_is_refused():
    model = small_clip(CAPTIONS, image_size=32)
    foreign = train_tokenizer(CAPTIONS)
    foreign.eos_token = foreign.pad_token
    with pytest.raises(ValueError, match="tokenizer: its end token has id 2, the text encoder needs 0"):
        HuggingFaceClip(model.model, foreign)


def test_models_of_oblong_images_are_refused():
    visual = SimpleNamespace(image_size=(224, 160))
    with pytest.raises(ValueError, match="224×160"):
        OpenClip(SimpleNamespace(visual=visual), list)


# ------------------------------------------------------------------ regions and words


def check_features(model, n_regions):
    """Features lie before the embeddings, and texts say which of their tokens are words."""
    model.eval()
    x, tokens = images(model), model.tokenize([*CAPTIONS, ""])
    image, text = model.image_features(x), model.text_features(tokens)
    torch.testing.assert_close(image.embedding, model.encode_image(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(text.embedding, model.encode_text(tokens), atol=1e-5, rtol=1e-4)
    pooled, regions, words = model.feature_sizes
    assert image.pooled.shape == (2, pooled)
    assert image.regions.shape == (2, n_regions, regions)
    assert text.words.shape == (*text.is_word.shape, words)
    assert text.is_word[-1].sum() == 1, "the first token of an empty text stands for it"
    # as many words as pieces, whatever the text is batched with, and none of them special
    for i, caption in enumerate(CAPTIONS):
        alone = model.text_features(model.tokenize([caption]))
        assert text.is_word[i].sum() == alone.is_word.sum() >= len(caption.split()) - caption.count(",")
        torch.testing.assert_close(
            text.words[i][text.is_word[i]], alone.words[0][alone.is_word[0]], atol=1e-5, rtol=1e-4
        )
    grey = images(model, channels=1)
    torch.testing.assert_close(
        model.image_features(grey).regions, model.image_features(grey.repeat(1, 3, 1, 1)).regions
    )
    return x, tokens, image, text


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n_regions"), [("small", 16), ("small-conv", 4)])
def test_small_models_give_regions_and_words(name, n_regions):
    model = load_clip(name, captions=CAPTIONS, image_size=32)
    x, _, image, _ = check_features(model, n_regions)
    if name == "small-conv":
        maps = x.contiguous(memory_format=torch.channels_last)
        for layer in model.visual[:-3]:
            maps = layer(maps)
        torch.testing.assert_close(image.regions[0, 1], maps[0, :, 0, 1])
        torch.testing.assert_close(image.pooled.view(2, -1, 4).amax(2), image.regions.amax(1))


@pytest.mark.slow
def test_huggingface_models_give_regions_and_words(huggingface_vit, siglip):
    x, _, image, _ = check_features(huggingface_vit, 49)
    vision = huggingface_vit.model.vision_model
    states = vision.encoder(inputs_embeds=vision.pre_layrnorm(vision.embeddings(x))).last_hidden_state
    torch.testing.assert_close(image.regions, vision.post_layernorm(states[:, 1:]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(image.embedding, image.pooled @ huggingface_vit.model.visual_projection.weight.T)
    _, _, image, _ = check_features(siglip, 16)
    head = siglip.model.vision_model.head
    torch.testing.assert_close(head(image.regions), image.pooled, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_open_clip_and_openai_give_regions_and_words(open_clip_vit):
    x, _, image, text = check_features(open_clip_vit, 49)
    visual = open_clip_vit.model.visual
    torch.testing.assert_close(image.embedding, image.pooled @ visual.proj, atol=1e-5, rtol=1e-4)
    visual.output_tokens = True
    torch.testing.assert_close(image.regions, visual(x)[1], atol=1e-5, rtol=1e-4)
    visual.output_tokens = False
    ends = open_clip_vit.tokenize(CAPTIONS).argmax(1)
    final = text.words[torch.arange(4), ends] @ open_clip_vit.model.text_projection
    torch.testing.assert_close(final, text.embedding[:4], atol=1e-5, rtol=1e-4)


class OpenAITransformer(torch.nn.Module):
    """The order of dimensions in OpenAI's code: (L, B, h)."""

    def __init__(self, transformer):
        super().__init__()
        self.transformer = transformer

    def forward(self, states):
        return self.transformer(states.transpose(0, 1)).transpose(0, 1)


def test_a_transformer_with_the_batch_second_gives_the_same_regions(open_clip):
    model = tiny_open_clip(open_clip)
    x = images(model, n=3)
    regions = model.image_features(x).regions
    visual = model.model.visual
    visual.transformer = OpenAITransformer(visual.transformer)

    def openai_forward(images):
        states = visual._embeds(images).transpose(0, 1)
        return visual._pool(visual.transformer(states).transpose(0, 1))[0] @ visual.proj

    model.model.encode_image = openai_forward
    torch.testing.assert_close(model.image_features(x).regions, regions)


def tiny_open_clip(open_clip, **vision):
    sizes = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CLIP(16, {**sizes, **vision}, text)
    return OpenClip(model, open_clip.get_tokenizer("ViT-B-32")).eval()


@pytest.mark.parametrize(
    ("vision", "n_regions"),
    [
        ({}, 16),
        ({"pool_type": "avg"}, 16),
        ({"pool_type": "avg", "final_ln_after_pool": True}, 16),
        ({"layers": (1, 1, 1, 1), "width": 8}, 1),
    ],
)
def test_open_clips_variants_give_regions_and_words(open_clip, vision, n_regions):
    model = tiny_open_clip(open_clip, **vision)
    _, _, image, _ = check_features(model, n_regions)
    visual = model.model.visual
    if hasattr(visual, "proj"):
        torch.testing.assert_close(image.pooled @ visual.proj, image.embedding)


@pytest.mark.parametrize(
    ("trunk", "pool", "image_size", "n_regions"),
    [("vit_tiny_patch16_224", "token", 224, 196), ("resnet18", "avg", 32, 1)],
)
def test_timms_encoders_give_regions(open_clip, trunk, pool, image_size, n_regions):
    pytest.importorskip("timm")
    vision = {"timm_model_name": trunk, "timm_pool": pool, "timm_proj": "linear", "image_size": image_size}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    model = OpenClip(open_clip.CLIP(16, vision, text), open_clip.get_tokenizer("ViT-B-32")).eval()
    check_features(model, n_regions)


def test_a_model_without_regions_or_words_says_so(open_clip):
    class Bare(ClipModel):
        pass

    with pytest.raises(ValueError, match="model: Bare has no image_features"):
        Bare(32).image_features(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="model: Bare has no text_features"):
        Bare(32).text_features(torch.zeros(1, 3, dtype=torch.long))
    model = tiny_open_clip(open_clip, attentional_pool=True)
    with pytest.raises(ValueError, match=r"model: VisionTransformer has no states of patches"):
        model.image_features(images(model))
    model.model.ln_final, model.model.text = torch.nn.Identity(), torch.nn.Identity()
    with pytest.raises(ValueError, match=r"model: Identity has no states of tokens"):
        model.text_features(model.tokenize(CAPTIONS))
    huggingface = small_clip(CAPTIONS, image_size=32)
    del huggingface.model.vision_model
    with pytest.raises(ValueError, match=r"model: CLIPModel has no vision_model"):
        huggingface.image_features(images(huggingface))
