"""Rewrite one fact in a causal language model, surgically: localize it, unlearn it, learn the new one, prove it.

```py
>>> import peft_surgical as ps
>>> model, tokenizer = ps.load_model("demo")
>>> fact = ps.Fact.from_file("examples/facts/france_capital.yaml")
>>> report = ps.edit(model, tokenizer, fact, out="out")
```

Importing it also makes the adapter type `SURGICAL_IA3` known to PEFT and transformers.
"""

from .adapters.algebra import difference, inverse, power, product
from .adapters.edits import Edit, EditOrPath
from .adapters.export import from_ia3, to_ia3
from .adapters.low_rank import LowRank
from .adapters.mergeable import Mergeable
from .architectures import Architecture, register_architecture
from .carried import faithfulness
from .drafting.drafts import FactDraft, new_fact
from .drafting.paraphrases import expand, held_out_prompts, paraphrases
from .drafting.ways import Way
from .editing import edit
from .errors import (
    AdapterError,
    ArchitectureError,
    FactError,
    FactWarning,
    MissingPackageError,
    ModelError,
    OutputError,
    ReportError,
    ScorerError,
    SelectionError,
    SurgicalError,
)
from .evaluation import evaluate
from .facts import Control, Fact, PortabilityQuestion, Probe, TrainingFact
from .hookspecs import Register, hookimpl
from .keyed_edit import edit_keyed
from .keying.keyed import KeyedRecipe, keyed_layers, learn_keyed
from .keying.keyed_by_subject import KeyedSubjectRecipe, learn_keyed_by_subject
from .localization import localize
from .localizing.context import MLPScores, Scorer, ScorerContext
from .localizing.faithfulness import Carried, Faithfulness
from .localizing.results import Localization
from .localizing.runs import Site
from .localizing.traces import CausalTrace
from .many import edit_all
from .measuring.checkpoints import EditedModel
from .measuring.metrics import Figure
from .measuring.states import State, adapter_state
from .merging import merge
from .models import load_model
from .plugins import PluginWarning
from .report import Report
from .running.generation import generate_answers
from .running.replicas import without_replicas
from .running.sharing import shard, shared_work
from .selection import PAPER_SELECTION, Selection
from .sentence import learn_sentence, learn_sentence_keyed
from .sites import Component, ModelShape, Slice, projection_slices
from .stacking import stack
from .stages import RECIPES, learn, low_memory, unlearn
from .staging.by_subject import SubjectRecipe, learn_by_subject, subject_components
from .staging.recipe import Recipe, TrainingRecord
from .staging.retained import Retained
from .staging.stage import Stage
from .texts.prompts import EncodedAnswer, encode_answer, without_template
from .together import FactTogether, Together
from .tracing import causal_trace
from .tuner import SurgicalIA3Config, SurgicalIA3Layer, SurgicalIA3Model, activate, unload

__version__ = "0.1.0"

__all__ = [
    "PAPER_SELECTION",
    "RECIPES",
    "AdapterError",
    "Architecture",
    "ArchitectureError",
    "Carried",
    "CausalTrace",
    "Component",
    "Control",
    "Edit",
    "EditOrPath",
    "EditedModel",
    "EncodedAnswer",
    "Fact",
    "FactDraft",
    "FactError",
    "FactTogether",
    "FactWarning",
    "Faithfulness",
    "Figure",
    "KeyedRecipe",
    "KeyedSubjectRecipe",
    "Localization",
    "LowRank",
    "MLPScores",
    "Mergeable",
    "MissingPackageError",
    "ModelError",
    "ModelShape",
    "OutputError",
    "PluginWarning",
    "PortabilityQuestion",
    "Probe",
    "Recipe",
    "Register",
    "Report",
    "ReportError",
    "Retained",
    "Scorer",
    "ScorerContext",
    "ScorerError",
    "Selection",
    "SelectionError",
    "Site",
    "Slice",
    "Stage",
    "State",
    "SubjectRecipe",
    "SurgicalError",
    "SurgicalIA3Config",
    "SurgicalIA3Layer",
    "SurgicalIA3Model",
    "Together",
    "TrainingFact",
    "TrainingRecord",
    "Way",
    "activate",
    "adapter_state",
    "causal_trace",
    "difference",
    "edit",
    "edit_all",
    "edit_keyed",
    "encode_answer",
    "evaluate",
    "expand",
    "faithfulness",
    "from_ia3",
    "generate_answers",
    "held_out_prompts",
    "hookimpl",
    "inverse",
    "keyed_layers",
    "learn",
    "learn_by_subject",
    "learn_keyed",
    "learn_keyed_by_subject",
    "learn_sentence",
    "learn_sentence_keyed",
    "load_model",
    "localize",
    "low_memory",
    "merge",
    "new_fact",
    "paraphrases",
    "power",
    "product",
    "projection_slices",
    "register_architecture",
    "shard",
    "shared_work",
    "stack",
    "subject_components",
    "to_ia3",
    "unlearn",
    "unload",
    "without_replicas",
    "without_template",
]
