"""Models of Hugging Face transformers and timm, made tiny on the spot; no test downloads anything."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import flatlab
from flatlab.cli.main import main
from flatlab.errors import UsageError

ROOT = Path(__file__).parents[2]
MINE = """
import torch

def tokens():
    ids = torch.randint(11, (6, 8), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:3, 5:] = -100
    return {"input_ids": ids, "attention_mask": (labels != -100).long(), "labels": labels}

def images():
    return torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model of GPT-2's shape."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    shape = {"vocab_size": 11, "n_positions": 8, "n_embd": 4, "n_layer": 1, "n_head": 2}
    at = tmp_path_factory.mktemp("hub") / "gpt"
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).save_pretrained(at)
    return at


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["flatlab", *words])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def largest(model: nn.Module, batch: dict[str, Tensor], shift: int) -> list[float]:
    """The two largest eigenvalues of the dense Hessian in float64 of the mean cross-entropy of what counts."""
    model = model.double().eval().requires_grad_(False)
    named = dict(model.named_parameters())
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in batch.items() if k != "labels"}

    def loss(theta: Tensor) -> Tensor:
        pieces = theta.split([p.numel() for p in named.values()])
        replaced = {n: piece.view_as(p) for (n, p), piece in zip(named.items(), pieces, strict=True)}
        logits = functional_call(model, replaced, (), inputs).logits
        if shift:
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
        return F.cross_entropy(logits, batch["labels"])

    with sdpa_kernel(SDPBackend.MATH):
        matrix = torch.autograd.functional.hessian(loss, torch.cat([p.reshape(-1) for p in named.values()]))
    found: list[float] = torch.linalg.eigvalsh(matrix).flip(0)[:2].tolist()
    return found


@pytest.mark.long
def test_the_page_runs_as_printed_and_is_right(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/own-models.md").read_text(), flags=re.DOTALL):
        exec(block, names)
    language = [pair.value for pair in names["language"].eigenvalues]
    model = transformers.GPT2LMHeadModel.from_pretrained(folder / "gpt")
    assert language == pytest.approx(largest(model, names["tokens"], shift=1), rel=2e-3)
    vision = [pair.value for pair in names["vision"].eigenvalues]
    assert vision == pytest.approx(largest(names["vit"], names["images"], shift=0), rel=2e-3)
    found = [layer.name.removeprefix("transformer.") for layer in names["blocks"].layers]
    assert found == ["wte", "wpe", "h.0", "h.1", "ln_f"]
    assert names["language"].to_dict()["model"] == "hf:./gpt"
    assert names["language"].to_dict()["loss_function"] == "next_token"


@pytest.mark.long
def test_a_language_model_by_every_command(
    gpt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("--model", f"hf:{gpt}", "--data", "mine:tokens", "--json", "e.json")
    tops = []
    for more in ((), ("--loss", "own_per_next_label"), ("--per-batch", "6")):
        assert command(monkeypatch, "eigs", *own, *more) == 0
        tops.append(json.loads(Path("e.json").read_text())["global"]["eigenvalues"][0]["value"])
    assert tops == pytest.approx(tops[:1] * 3, rel=2e-3)
    said = " ".join(capsys.readouterr().err.split())
    assert f"The loss is next_token, on which hf:{gpt} is trained" in said
    assert "loss_type" not in said
    short = {"trace": ("--max-probes", "20"), "density": ("--depth", "5"), "surface": ("--points", "3")}
    for name, more in short.items():
        assert command(monkeypatch, name, *own, *more) in (0, 3)


def test_matrices_of_the_logits_of_a_language_model(gpt: Path, folder: Path) -> None:
    """Gauss-Newton, which is the Fisher matrix here, and the empirical one, against dense matrices in float64."""
    transformers = pytest.importorskip("transformers")
    sys.path.insert(0, str(folder))
    from mine import tokens  # type: ignore[import-not-found]

    model = transformers.GPT2LMHeadModel.from_pretrained(gpt).double().eval()
    parameters, data = list(model.parameters()), tokens()
    labels = data["labels"][:, 1:]
    with sdpa_kernel(SDPBackend.MATH):
        z = model(data["input_ids"], attention_mask=data["attention_mask"]).logits[:, :-1]
    roots, slopes = [], []
    for n, t in (labels != -100).nonzero().tolist():
        p = torch.softmax(z[n, t], 0).detach()
        middle = p.diag() - torch.outer(p, p)
        rows = [torch.autograd.grad(z[n, t, c], parameters, retain_graph=True) for c in range(len(p))]
        J = torch.stack([torch.cat([piece.flatten() for piece in row]) for row in rows])
        values, vectors = torch.linalg.eigh(middle)
        roots.append((vectors * values.clamp(min=0).sqrt()).T @ J)
        slopes.append((n, (p - F.one_hot(labels[n, t], len(p))) @ J))
    by_sample = torch.stack([torch.stack([g for at, g in slopes if at == n]).sum(0) for n in range(len(labels))])
    newton, empirical = (
        float(torch.linalg.matrix_norm(rows, 2)) ** 2 / len(slopes) for rows in (torch.cat(roots), by_sample)
    )
    for matrix, expected in {"gauss-newton": newton, "fisher": newton, "empirical-fisher": empirical}.items():
        found: Any = flatlab.eigs(f"hf:{gpt}", data=data, matrix=matrix, layers="none", dtype="float64")
        assert found.eigenvalues[0].value == pytest.approx(expected, rel=2e-3)


def test_matrices_of_the_logits_of_a_classifier(folder: Path) -> None:
    """They are those of a module that returns the logits alone."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"image_size": 8, "patch_size": 4, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(**shape, intermediate_size=4, num_labels=3)
    transformers.ViTForImageClassification(config).eval().save_pretrained("vit")
    sys.path.insert(0, str(folder))
    from mine import images

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner: Any = flatlab.load("hf:./vit")

        def forward(self, pixel_values: Tensor) -> Tensor:
            logits: Tensor = self.inner(pixel_values).logits
            return logits

    for matrix in ("gauss-newton", "empirical-fisher"):
        tops: list[Any] = [
            flatlab.eigs(model, "cross_entropy", images(), matrix=matrix, layers="none", dtype="float64").eigenvalues
            for model in ("hf:./vit", Bare())
        ]
        assert tops[0][0].value == pytest.approx(tops[1][0].value, rel=1e-6)


def test_the_usual_loss_of_an_encoder_with_a_decoder(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"vocab_size": 11, "d_model": 4, "d_kv": 2, "d_ff": 4, "num_layers": 1, "num_heads": 2}
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**shape, decoder_start_token_id=0, pad_token_id=0)
    )
    model.eval().save_pretrained("t5")
    ids = torch.randint(1, 11, (6, 5))
    labels = torch.randint(1, 11, (6, 4))
    labels[:2, 2:] = -100
    data = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    found = [flatlab.eigs("hf:./t5", loss, data, layers="none").to_dict() for loss in (None, "own_per_label")]
    assert found[0]["loss_function"] == "own_per_label"
    values = [result["global"]["eigenvalues"][0]["value"] for result in found]
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert found[0]["loss"] == pytest.approx(float(model(**data).loss), rel=1e-5)


@pytest.mark.parametrize("problem", ["regression", None])
def test_the_usual_labels_of_a_regression(problem: str | None, folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"vocab_size": 11, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(
        **shape, intermediate_size=4, max_position_embeddings=8, num_labels=1, problem_type=problem
    )
    model = transformers.BertForSequenceClassification(config)
    model.eval().save_pretrained("bert")
    data = {"input_ids": torch.randint(1, 11, (6, 5)), "labels": torch.randn(6)}
    column = data | {"labels": data["labels"][:, None]}
    found = [flatlab.eigs("hf:./bert", data=part, layers="none").to_dict() for part in (data, column)]
    assert found[0]["loss_function"] == "mse"
    values = [result["global"]["eigenvalues"][0]["value"] for result in found]
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert found[0]["loss"] == pytest.approx(float(model(**data).loss), rel=1e-5)


def test_half_precision_is_raised_and_said(
    gpt: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.GPT2LMHeadModel.from_pretrained(gpt).to(torch.bfloat16).save_pretrained("low")
    assert command(monkeypatch, "eigs", "--model", "hf:./low", "--data", "mine:tokens", "--layers", "none") == 0
    assert "The bfloat16 weights of hf:./low are raised to float32, exactly." in " ".join(
        capsys.readouterr().err.split()
    )
    with pytest.warns(UserWarning, match="bfloat16 weights of hf:./low are raised to float32"):
        model: Any = flatlab.load("hf:./low")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def spoil(at: Path, **fields: Any) -> None:
    config = json.loads((at / "config.json").read_text())
    (at / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.long
def test_what_cannot_be_had_is_one_sentence(gpt: Path, folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel.from_pretrained(gpt)
    for name in ("without", "foreign", "classless", "remote", "empty"):
        model.save_pretrained(folder / name)
    (folder / "empty" / "model.safetensors").unlink()
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "without" / "model.safetensors")
    del tensors["transformer.ln_f.weight"]
    save_file(tensors, folder / "without" / "model.safetensors", metadata={"format": "pt"})
    spoil(folder / "foreign", architectures=["SomethingElse"])
    spoil(folder / "classless", architectures=None)
    spoil(folder / "remote", auto_map={"AutoConfig": "code.Config"}, model_type="unheard-of")
    (folder / "remote" / "code.py").write_text("open('it-ran', 'w').close()\n")
    for name, reason in {
        "hf:./without": "has no weights for transformer.ln_f.weight, which would be random",
        "hf:./foreign": "names SomethingElse, which transformers",
        "hf:./classless": "names no class",
        "hf:./remote": "cannot be had",
        "hf:./empty": "cannot be had",
        "hf:./nowhere": "There is no folder ./nowhere",
        "hf:remote": "write hf:./remote",
        "hf:": "names no model",
        "hf:no-such-model-here": "Without a network, name a folder",
    }.items():
        with pytest.raises(UsageError, match=reason):
            flatlab.load(name)
    assert not (folder / "it-ran").exists()


def test_pickled_weights_run_no_code(gpt: Path, folder: Path) -> None:
    pytest.importorskip("transformers")
    import pickle
    import shutil

    class RunsCode:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (Path("it-ran"),))

    shutil.copytree(gpt, folder / "bad")
    (folder / "bad" / "model.safetensors").unlink()
    with (folder / "bad" / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"x": RunsCode()}, file)
    with pytest.raises(UsageError, match="cannot be had"):
        flatlab.load("hf:./bad")
    assert not (folder / "it-ran").exists()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("transformers", "timm", "torchvision"):
        monkeypatch.setitem(sys.modules, package, None)
    for name in ("hf", "timm"):
        assert command(monkeypatch, "eigs", "--model", f"{name}:anything", "--data", "mine:images") == 2
        assert f"pip install 'flatlab[{name}]'" in " ".join(capsys.readouterr().err.split())


def test_a_model_of_timm(folder: Path) -> None:
    """timm imports torchvision, which is not among what the tests need: where it is missing this is skipped."""
    try:
        import timm
        from timm.models._hub import save_for_hf
    except Exception as error:
        pytest.skip(f"timm or the torchvision that it imports is not here ({type(error).__name__})")
    shape = {"img_size": 8, "patch_size": 4, "num_classes": 3, "depth": 1, "embed_dim": 8, "num_heads": 2}
    made = timm.create_model("vit_tiny_patch16_224", **shape)
    save_for_hf(made.half(), "vit", model_args=shape, safe_serialization=True)
    made.float()
    with pytest.warns(UserWarning, match="The float16 weights of vit/model.safetensors are raised to float32"):
        model: Any = flatlab.load("timm:./vit")
    for name, tensor in made.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    sys.path.insert(0, str(folder))
    from mine import images

    assert flatlab.eigs(model, "cross_entropy", images(), layers="none").converged
    (folder / "vit" / "model.safetensors").unlink()
    for name, reason in {
        "timm:./vit": "holds no weights",
        "timm:nothing_such": "Unknown model",
        "timm:resnet18": "Without a network, name a folder",
    }.items():
        with pytest.raises(UsageError, match=reason):
            flatlab.load(name)
