"""A recipe: what a user edits, one YAML file for a pair of models. Its schema, and how it is found and read."""

from rpam_lite.recipe.fitting import Capture, Dial, Fit, Memory, Release, Setting
from rpam_lite.recipe.load import find_recipe, load_recipe, shipped_folder, with_device_memory, with_dial
from rpam_lite.recipe.schema import OURS, Asked, Eval, Export, Fields, Label, Merge, Ollama, Parents, Quantize, Recipe
from rpam_lite.recipe.values import QuestionSets, parse_size

__all__ = [
    "OURS",
    "Asked",
    "Capture",
    "Dial",
    "Eval",
    "Export",
    "Fields",
    "Fit",
    "Label",
    "Memory",
    "Merge",
    "Ollama",
    "Parents",
    "Quantize",
    "QuestionSets",
    "Recipe",
    "Release",
    "Setting",
    "find_recipe",
    "load_recipe",
    "parse_size",
    "shipped_folder",
    "with_device_memory",
    "with_dial",
]
