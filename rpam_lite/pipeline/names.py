"""The stages' names in order, each with its line of help: all that the command line shows of them."""

from __future__ import annotations

STAGE_HELP = {
    "check": "Say everything that is wrong with the recipe and its pair.",
    "label": "Sample both parents, grade, and label the calibration questions.",
    "capture": "Run both parents over the labelled questions, and keep what the fit reads.",
    "fit": "Fit the merging coefficients.",
    "statistics": "Measure what the merge method needs.",
    "merge": "Write the merged checkpoint.",
    "export": "Write the merged checkpoint as GGUF.",
    "imatrix": "Measure the merge's inputs: the importance matrix.",
    "quantize": "Quantize the GGUF file.",
    "divergence": "Compare the quantized files with the unquantized one.",
    "eval": "Measure parents, scalar curve and merge in llama.cpp.",
    "report": "Write the report and print the closing table.",
}
