"""The policy file: the defaults that it documents, and a sentence for each mistake in it."""

import math

import pytest

from ctm.safety import Ask, KeyInfo, Policy, Refused
from ctm.safety.admission import LOCAL, unknown_names
from ctm.safety.policy import DEFAULT_FILE, Rate


def test_the_documented_file_holds_the_defaults_and_every_setting():
    assert Policy.load(DEFAULT_FILE) == Policy()
    text = DEFAULT_FILE.read_text(encoding="utf-8")
    assert all(f"\n{name}:" in text for name in Policy.model_fields)


def test_an_empty_file_is_the_default_policy(tmp_path):
    (tmp_path / "p.yaml").write_text("# nothing yet\n")
    assert Policy.load(tmp_path / "p.yaml") == Policy()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"max_imags": 3}, "'max_imags' is no setting: did you mean max_images?"),
        ({"wholly": 3}, "'wholly' is no setting: it takes classes, conditions, max_images"),
        ({"thresholds": {"a": {"b": {"hld": 1}}}}, "'hld' is no setting of thresholds.a.b: did you mean hold?"),
        ({"rates": {"user": {"per_minut": 1}}}, "'per_minut' is no setting of rates.user: did you mean per_minute?"),
        ({"max_images": 0}, "max_images must be at least 1, got 0"),
        ({"max_images": True}, "max_images must be a whole number, got True"),
        ({"max_images": "3"}, "max_images must be a whole number, got '3'"),
        ({"filter_deadline": math.nan}, "filter_deadline must be a finite number, got nan"),
        ({"filter_deadline": 0}, "filter_deadline must be more than 0, got 0"),
        ({"thresholds": {"a": {"b": {"block": 1.5}}}}, "thresholds.a.b.block must be at most 1, got 1.5"),
        ({"thresholds": {"a": {"b": {"block": math.nan}}}}, "thresholds.a.b.block must be a finite number, got nan"),
        (
            {"thresholds": {"a": {"b": {"hold": 0.9, "block": 0.1}}}},
            "thresholds.a.b holds from 0.9 on but blocks from 0.1 on: block must be the larger",
        ),
        ({"thresholds": {"a": {"b": {}}}}, "thresholds.a.b neither holds nor blocks: give hold or block"),
        ({"thresholds": {"a": {}}}, "thresholds has no category of a, so it would decide nothing"),
        ({"retention": {"held": 0}}, "retention keeps held pictures for 0 days"),
        ({"retention": {"served": math.inf}}, "retention.served must be a finite number, got inf"),
        ({"classes": {"allowed": [1.5]}}, "classes.allowed has 1.5, which is neither a number from 0 on nor a name"),
        (
            {"classes": {"allowed": None}},
            "classes.allowed is empty: say all, a list such as [3, Flags], or [] for none",
        ),
        ({"classes": {"blocked": "Flags"}}, "classes.blocked is no list: give one"),
        ({"classes": {"blocked": [-1]}}, "classes.blocked has -1, which is neither"),
        ({"uploads": "me"}, "uploads must be 'nobody', 'moderators', 'keys' or 'everyone', got 'me'"),
        ({"small_images": "hide"}, "small_images must be 'pass', 'hold' or 'block', got 'hide'"),
        ({"rates": {"user": 5}}, "rates.user must be a mapping, name: value, got 5"),
        ({5: 6}, "5 must be a name, got 5"),
        ([], "p.yaml is no policy"),
        ({"max_images": 0, "uploads": "me"}, r"max_images must be at least 1, got 0 (and 1 more)"),
    ],
)
def test_each_mistake_is_one_sentence_that_names_the_file(values, sentence):
    with pytest.raises(ValueError, match=r"^p\.yaml") as caught:
        Policy.of(values, "p.yaml")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("max_images: 3\nmax_images: 4\n", "gives the key 'max_images' twice"),
        ("a: !!python/object:os.system x", "asks for an object"),
        ("a: [", "is not readable as YAML"),
        ("- 3\n", "is no policy"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(tmp_path, text, sentence):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        Policy.load(tmp_path / "p.yaml")


def test_no_setting_can_be_changed_and_the_digest_tells_policies_apart():
    policy = Policy()
    with pytest.raises(ValueError, match="frozen"):
        policy.max_images = 5
    assert policy.digest == Policy.of({}).digest
    assert policy.digest != Policy.of({"max_images": 5}).digest


USER, MODERATOR = KeyInfo("1", "Ann", "user"), KeyInfo("2", "Bob", "moderator")
NAMES = ["shirt", "Flags", "shoe"]


@pytest.mark.parametrize(
    ("values", "ask", "code"),
    [
        ({"max_images": 4}, {"num": 4}, None),
        ({"max_images": 4}, {"num": 5}, "too_many_images"),
        ({"classes": {"blocked": [1]}}, {"labels": [0, 2]}, None),
        ({"classes": {"blocked": [1]}}, {"labels": [0, 1]}, "class_not_allowed"),
        ({"classes": {"blocked": ["flags"]}}, {"labels": [1]}, "class_not_allowed"),
        ({"classes": {"allowed": ["flags"]}}, {"labels": [1]}, None),
        ({"classes": {"allowed": [1]}}, {"labels": [2]}, "class_not_allowed"),
        ({"classes": {"allowed": [1], "blocked": ["Flags"]}}, {"labels": [1]}, "class_not_allowed"),
        # without a class the model may draw any of them
        ({"classes": {"blocked": [1]}}, {"labels": []}, "class_not_allowed"),
        ({"classes": {"blocked": [1]}}, {"labels": [0, -1]}, "class_not_allowed"),
        # nor does guidance below 1 keep it to the class: 0 is the model without one
        *[({"classes": {"blocked": [1]}}, {"labels": [0], "guidance": w}, "class_not_allowed") for w in (0, 0.9, -100)],
        *[({"classes": {"blocked": [1]}}, {"labels": [0], "guidance": w}, None) for w in (1, 1.5, 100)],
        ({"classes": {"blocked": [7]}}, {"labels": [0], "guidance": 0}, None),
        ({"classes": {"blocked": [7]}}, {"labels": []}, None),
        ({"classes": {"blocked": [1]}}, {"labels": [], "classes": 0, "class_names": []}, None),
        ({"classes": {"allowed": ["x"]}}, {"labels": [], "classes": 0, "class_names": []}, "class_not_allowed"),
        ({"conditions": {"blocked": ["text"]}}, {"conditions": ["goal"]}, None),
        ({"conditions": {"blocked": ["text"]}}, {"conditions": ["goal", "text"]}, "condition_not_allowed"),
        ({"conditions": {"allowed": ["goal"]}}, {"conditions": ["text"]}, "condition_not_allowed"),
        ({"uploads": "nobody"}, {"upload": True, "key": MODERATOR}, "upload_not_allowed"),
        ({"uploads": "nobody"}, {"upload": False}, None),
        ({"uploads": "moderators"}, {"upload": True, "key": USER}, "upload_not_allowed"),
        ({"uploads": "moderators"}, {"upload": True, "key": MODERATOR}, None),
        ({"uploads": "moderators"}, {"upload": True, "key": LOCAL}, None),
        ({"uploads": "keys"}, {"upload": True}, "upload_not_allowed"),
        ({"uploads": "keys"}, {"upload": True, "key": USER}, None),
        ({"uploads": "everyone"}, {"upload": True}, None),
    ],
)
def test_what_is_admitted(values, ask, code):
    policy = Policy.of(values)
    ask = Ask("m", **{"classes": 3, "class_names": NAMES, **ask})
    if code is None:
        policy.admit(ask)
    else:
        with pytest.raises(Refused) as caught:
            policy.admit(ask)
        assert caught.value.code == code


def test_names_in_the_policy_that_no_model_has_are_listed():
    policy = Policy.of({"classes": {"blocked": ["flags", "weapon", 2, 9]}})
    assert unknown_names(policy, NAMES, 3) == ["weapon", "9"]


def test_a_key_has_its_own_rate_or_its_roles():
    policy = Policy.of({"rates": {"user": {"per_minute": 7}}})
    assert policy.rate_of(USER).per_minute == 7
    assert policy.rate_of(MODERATOR) == policy.rates.moderator
    assert policy.rate_of(None) == policy.rates.anonymous
    assert policy.rate_of(KeyInfo("3", "Cy", "user", Rate(per_minute=1))).per_minute == 1
