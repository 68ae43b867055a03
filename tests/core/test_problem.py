"""Every refusal: what DESIGN lists, and nothing else."""

from __future__ import annotations

import pytest

from gateway.core.problem import KEEP, NO_EFFECT, UNKNOWN, Label, Problem, Refusal

#: DESIGN §9, in its words; and the 503 of an issuer whose keys are not there.
LISTED = {
    "key-missing": 400,
    "key-invalid": 400,
    "scope-missing": 400,
    "scope-invalid": 401,
    "scope-unverifiable": 503,
    "request-malformed": 400,
    "request-timeout": 408,
    "target-too-long": 414,
    "head-too-large": 431,
    "expectation-failed": 417,
    "method-not-allowed": 405,
    "method-unsupported": 501,
    "coding-unsupported": 501,
    "version-unsupported": 505,
    "key-reused": 422,
    "credentials-differ": 422,
    "in-flight": 409,
    "in-doubt": 409,
    "response-not-kept": 409,
    "policy-changed": 409,
    "body-too-large": 413,
    "store-unavailable": 503,
    "identity-changed": 503,
    "overloaded": 503,
    "upstream-unreachable": 502,
    "upstream-lost": 502,
    "upstream-timeout": 504,
    "no-route": 404,
}


def slugs(wanted: object, attribute: str) -> set[str]:
    return {problem.slug for problem in Problem if getattr(problem, attribute) == wanted}


def test_the_table_is_the_listed_one() -> None:
    """Slug and status, none more and none less. (An Enum would swallow a row that repeats another whole.)"""
    assert {problem.slug: problem.status for problem in Problem} == LISTED
    assert len(Problem) == len(LISTED) == 28


def test_a_problem_is_found_by_the_name_of_its_slug() -> None:
    """Code, metric, log and document say one word."""
    assert [problem.name for problem in Problem] == [problem.slug.upper().replace("-", "_") for problem in Problem]


def test_the_type_of_a_problem_is_a_urn() -> None:
    """RFC 9457 §3.1.1; it is part of what clients read, so it stays."""
    assert Problem.KEY_REUSED.type == "urn:oncegate:problem:key-reused"
    assert len({problem.type for problem in Problem}) == len(Problem)


def test_what_a_gate_in_front_of_this_one_is_told() -> None:
    """`unknown` where it is in doubt, `keep` where it did run, `no-effect` where this request ran nothing."""
    assert slugs(UNKNOWN, "outcome") == {"in-doubt", "upstream-lost", "upstream-timeout"}
    assert slugs(KEEP, "outcome") == {"response-not-kept"}
    assert slugs(NO_EFFECT, "outcome") == set(LISTED) - {
        "in-doubt",
        "upstream-lost",
        "upstream-timeout",
        "response-not-kept",
    }
    assert (NO_EFFECT, UNKNOWN, KEEP) == ("no-effect", "unknown", "keep")


def test_what_an_sdk_is_advised() -> None:
    """DESIGN §7: retry in flight, 503 and the 504; never in doubt, reused, other credentials, not kept.

    Besides, what follows from these: an upstream that was not reached may be tried again, and an answer
    that was lost left the key in doubt.
    """
    assert slugs(True, "retry") == {
        "in-flight",
        "store-unavailable",
        "identity-changed",
        "scope-unverifiable",
        "overloaded",
        "upstream-timeout",
        "upstream-unreachable",
    }
    assert slugs(False, "retry") == {
        "in-doubt",
        "key-reused",
        "credentials-differ",
        "response-not-kept",
        "upstream-lost",
    }
    assert {problem.slug for problem in Problem if problem.status == 503} <= slugs(True, "retry")


def test_no_retry_is_advised_where_it_could_run_twice_or_never_succeed() -> None:
    """A problem of unknown outcome is retried only where the retry attaches to what still comes."""
    assert {problem.slug for problem in Problem if problem.outcome == UNKNOWN and problem.retry} == {"upstream-timeout"}


def test_what_idempotency_status_says() -> None:
    """DESIGN §6 and §9: refused, unless the key is in flight, in doubt, freed, or its answer was not kept."""
    labels = {
        "in-flight": Label.IN_FLIGHT,
        "in-doubt": Label.IN_DOUBT,
        "upstream-lost": Label.IN_DOUBT,
        "upstream-timeout": Label.IN_DOUBT,
        "upstream-unreachable": Label.RELEASED,
        "response-not-kept": Label.NOT_KEPT,
    }
    assert {problem.slug: problem.label for problem in Problem} == {
        slug: labels.get(slug, Label.REFUSED) for slug in LISTED
    }


def test_the_words_of_idempotency_status() -> None:
    """DESIGN §9, in its order."""
    said = "stored, replayed, released, in-flight, in-doubt, not-kept, not-stored, unprotected, refused"
    assert ", ".join(label.value for label in Label) == said


@pytest.mark.parametrize("problem", Problem, ids=lambda problem: problem.slug)
def test_every_problem_says_what_it_is_and_what_to_do(problem: Problem) -> None:
    """A title without a full stop, a detail of whole sentences, both in ASCII: they go into JSON and logs."""
    assert problem.title[0].isupper()
    assert problem.title[-1].isalnum() or problem.title.endswith("HTTP/1.1")
    assert problem.detail[0].isupper()
    assert problem.detail.endswith(".")
    assert (problem.title + problem.detail).isascii()


@pytest.mark.parametrize("problem", Problem, ids=lambda problem: problem.slug)
def test_no_problem_says_that_nothing_ran_where_nobody_knows(problem: Problem) -> None:
    """And none that says so declares anything but `no-effect`."""
    if "othing was run" in problem.detail or "othing runs" in problem.detail:
        assert problem.outcome == NO_EFFECT
    if problem.outcome == UNKNOWN:
        assert "Ask the service" in problem.detail or "It may still do so" in problem.detail


def test_who_pays_is_warned_against_a_new_key() -> None:
    """DESIGN §3: the first request may have taken effect; do not pay again under a new key."""
    detail = Problem.CREDENTIALS_DIFFER.detail
    assert "may have taken effect" in detail
    assert "do not send it again under a new key" in detail


def test_a_refusal_tells_its_own_story_first() -> None:
    """What this request met, then what to do in general."""
    plain = Refusal(Problem.IN_DOUBT)
    assert plain.detail == Problem.IN_DOUBT.detail
    assert Refusal(Problem.IN_DOUBT, "Attempt 1 was sent.").detail == f"Attempt 1 was sent. {Problem.IN_DOUBT.detail}"
    assert plain.retry_after is None


def test_a_refusal_is_labelled_as_its_problem_unless_it_says_otherwise() -> None:
    """No free connection in time is `overloaded`, and `released`."""
    assert Refusal(Problem.OVERLOADED).shown_as is Label.REFUSED
    assert Refusal(Problem.OVERLOADED, label=Label.RELEASED).shown_as is Label.RELEASED
