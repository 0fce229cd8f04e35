"""Options of run_ag_news.py, in the spelling of the source; TensorFlow is not imported here."""

import dataclasses

from examples.settings import option
from runs.settings import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, at_least, flag

TYPES = ("quantization", "binarization")
METHODS = {"quantization": ("basic", "fully"), "binarization": ("basic", "ir")}
PATTERNS = ("MHA", "FFN", "CLS", "ALL", "ALL_QK", "ALL_QV", "ALL_KV", "MHA_QK")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a run; each field is an option of the same name, and has its help."""

    written = staticmethod(option)

    quant_type: str | None = flag(
        None, "Train a quantized or a binarized network; without it the float one.", choices=TYPES
    )
    quant_method: str | None = flag(
        None,
        "quantization: basic (weights alone) or fully (weights and activations); binarization:"
        " basic (sign) or ir (IR-Net).",
        choices=("basic", "fully", "ir"),
        needs={"quant_type": True},
    )
    bit_num: int | None = flag(
        None, "Bits of quantized tensors.", choices=(8, 4, 2), needs={"quant_type": "quantization"}
    )
    quant_pattern: str | None = flag(
        None,
        "What is binarized: attention, feed-forward, classifier, all, or parts of the attention"
        " with or without the rest (query and key, query and value, key and value).",
        choices=PATTERNS,
        needs={"quant_type": "binarization"},
    )
    skip_final: bool = flag(
        True,
        "Leave the last layer of the classifier in float; --noskip_final quantizes it too.",
        needs={"quant_type": True},
    )
    scale: str = flag(
        "row",
        "Scale of binarized weights: none, or the mean magnitude of each output (basic).",
        choices=("none", "row"),
        needs={"quant_type": "binarization"},
    )
    pre_trained: bool = flag(
        False, "Begin with embeddings and attention of --pretrained_checkpoint.", needs={}
    )
    pretrained_checkpoint: str | None = flag(
        None,
        "BERT checkpoint (a folder) of the width and with at least the blocks of the classifier.",
        needs={"pre_trained": True},
    )
    encoder: str | None = flag(
        None,
        "Folder of a BERT checkpoint that takes the place of embeddings and blocks: config.json"
        " and weights.",
        metavar="DIR",
    )
    preset: str | None = flag(
        None, "KerasHub preset of an encoder instead: its name, an address or a folder."
    )
    latent: bool = flag(
        False,
        "Latent quantization: train in float for --latent_epochs, then go on quantized.",
        needs={"quant_type": True},
    )
    latent_epochs: int = flag(1, "Epochs in float.", bound=AT_LEAST_1, needs={"latent": True})
    exp_name: str = flag("tmp", "Prefix of the files of results.")
    data_dir: str | None = flag(
        None, "Folder with train.csv and test.csv of AG News, or tfds:DATASET.", metavar="DIR|TFDS"
    )
    vocab_file: str | None = flag(None, "BERT's vocab.txt.", metavar="FILE")
    max_length: int = flag(512, "Longest text in tokens; longer ones are cut.", bound=at_least(3))
    blocks: int = flag(2, "Transformer blocks.", bound=AT_LEAST_1)
    width: int = flag(512, "Width of embeddings.", bound=AT_LEAST_1)
    heads: int = flag(8, "Attention heads.", bound=AT_LEAST_1)
    hidden: int = flag(1024, "Width inside of feed-forward blocks.", bound=AT_LEAST_1)
    classifier: int = flag(1024, "Width of the classifier's hidden layer.", bound=AT_LEAST_1)
    double_embedding: bool = flag(
        False, "Add the embeddings twice, as the source does, instead of once."
    )
    mask_padding: bool = flag(
        True, "Attention leaves padding out; --nomask_padding as the source computes."
    )
    epochs: int = flag(10, "Epochs.", bound=AT_LEAST_1)
    batch_size: int = flag(32, "Texts in a batch.", bound=AT_LEAST_1)
    learning_rate: float = flag(1e-4, "Of Adam.", bound=POSITIVE)
    seed: int = flag(0, "Of weights, dropout and order.", bound=NOT_NEGATIVE)
    amp: bool = flag(
        False,
        "Compute in bfloat16; weights, softmax, layer norms and quantization stay float32.",
    )
    log_every: int = flag(100, "Iterations between rows of the log.", bound=AT_LEAST_1)
    tfds_dir: str | None = flag(
        None, "Where TensorFlow Datasets keeps its data; its own default if not set."
    )
    output_dir: str = flag("res", "Where results are written.")
