"""What a report says of the weights that were measured."""

import pytest

from peft_surgical.errors import ReportError
from peft_surgical.reporting.page import render_page
from peft_surgical.reporting.weights import weights_told

from .reports import report
from .test_summary import shown

BASE = {"name": "base", "revision": None}
EDITS = [
    {"adapters": [{"name": "unlearn"}, {"name": "learn"}], "base": BASE},
    {"adapters": [{"name": "keyed"}], "base": BASE},
]
EDITED = {"name": "./<b>rome", "dtype": "bfloat16", "changed": ["a", "b"], "tensors": 272, "only_rounding": 0}


def test_a_base_without_edits_says_nothing():
    assert weights_told(report()) == []
    assert weights_told(report(settings={"base_edits": []})) == []


def test_a_base_with_edits_and_an_edited_checkpoint_are_told_in_the_terminal_and_on_the_page():
    made = report(settings={"base_edits": EDITS, "edited": {**EDITED, "edits": EDITS[:1]}})
    carried, beside = weights_told(made)
    assert carried == "The base carries 2 edits, merged into its weights: unlearn and learn, then keyed."
    assert beside == (
        "Edited is the checkpoint ./<b>rome, stored in bfloat16: 2 of 272 tensors differ from the base's; both are"
        " measured in float32. It says that it carries 1 edit, merged into its weights: unlearn and learn."
    )
    text = " ".join(shown(made).split())
    assert carried in text
    assert beside in text
    assert (
        "1 of 272 tensors differs from" in weights_told(report(settings={"edited": {**EDITED, "changed": ["a"]}}))[0]
    )
    page = render_page(made)
    assert f'<p class="soft">{carried}</p>' in page
    assert "./&lt;b&gt;rome" in page


def test_the_page_has_the_revision_behind_the_model():
    page = render_page(report(settings={"revision": "<v1>"}))
    assert page.count("tiny/model (revision &lt;v1&gt;)") == 2
    assert "(revision" not in render_page(report()) + render_page(report(settings={"revision": None}))


@pytest.mark.parametrize(
    "settings", [{"base_edits": 3}, {"base_edits": [{}]}, {"edited": []}, {"edited": {**EDITED, "edits": "x"}}]
)
def test_what_is_no_report_is_refused(settings):
    with pytest.raises(ReportError, match=r"this is not a report: .* stands where"):
        weights_told(report(settings=settings))
