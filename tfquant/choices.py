"""Names and defaults of options, importable without TensorFlow and NumPy.

Command lines are parsed with these before TensorFlow is imported, which takes seconds. A comment
names the module that implements each name.
"""

MODES = ("float", "quantized")  # engine
ORDERS = ("parallel", "sequential")  # of calibration: calibration, sequential
COMPRESSIONS = ("none", "fp16")  # of gradients between ranks: distributed

# Straight-through gradient at and beyond the ends of a range: gradients; that of binary values:
# error_decay.
RANGE_STES = ("inclusive", "strict", "identity")
STES = (*RANGE_STES, "error_decay")
TRANSFORMS = ("none", "center", "standardize")  # of parameters before rounding: transforms
EXPONENTIALS = ("exact", "posit_exp", "posit_exp_shifted")  # of softmax: rewrites/posit_softmax
PARAMETRIZED = ("lsq", "tqt", "pact", "elastic")  # ranges that training learns: learned
RANGE_UPDATES = ("frozen", "lsq", "tqt", "pact", "moving_average")  # of ranges in training
UPDATES = (*RANGE_UPDATES, "elastic")  # and of binary values: elastic

# Distillation: training/distillation and training/teaching. The temperature and the scale of the
# divergence are those of NVIDIA's quantization-aware BERT.
DIRECTIONS = ("student_teacher", "teacher_student")
TEMPERATURE = 3.0
DISTILLATION_SCALE = 10000.0

# AdaRound: ptq/rounding. Annealing of its regularizer -> default shape, None where it has none.
DECAYS = {"linear": None, "cosine": None, "sigmoid": 10.0, "power": 4.0, "exp": 4.0, "log": 2.0}

# Kind of a model's output -> what counts as the same answer in a check of an exported file:
# export/output_kinds and export/output_parity.
OUTPUT_KINDS = {
    "classes": "scores along the last axis (classes, or positions of a text): the largest one",
    "number": "every column by itself: its value",
    "vector": "direction and length along the last axis (embeddings)",
    "feature_map": "values along the last axis at every position",
    "exact": "equality (integers, booleans, texts)",
}
