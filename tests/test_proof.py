"""Facts about the held-out statistics: hand arithmetic and laws of the paired bootstrap."""

import json

import numpy as np
import pytest

from evoid_jax import proof

NAN = float("nan")


def test_total_is_the_prior_weighted_mean_of_what_is_there():
    scores = [[0.2, 0.8], [0.2, NAN], [NAN, NAN], [NAN, 0.8], [np.inf, 0.8]]
    # (1 * 0.2 + 3 * 0.8) / 4 = 0.65
    expected = [0.65, 0.2, NAN, 0.8, 0.8]
    np.testing.assert_allclose(proof.total(scores, [1, 3]), expected, rtol=1e-12)


def test_total_ignores_the_scale_of_the_prior_and_zero_priors():
    scores = np.random.default_rng(0).random((5, 3))
    np.testing.assert_allclose(
        proof.total(scores, [0.1, 0.2, 0.0]), proof.total(scores[:, :2], [1, 2]), rtol=1e-12
    )
    assert np.isnan(proof.total([[NAN, 0.5]], [1.0, 0.0])).all()


@pytest.mark.parametrize("prior", [[1.0], [1.0, -0.5], [0.0, 0.0], [NAN, 1.0]])
def test_total_rejects_bad_priors(prior):
    with pytest.raises(ValueError, match="prior"):
        proof.total([[0.1, 0.2]], prior)


def test_identical_arms_differ_by_nothing():
    scores = np.random.default_rng(1).random(40)
    assert proof.paired_bootstrap(scores, scores) == (0.0, 0.0, 0.0)


def test_shift_is_the_delta_and_has_no_width():
    base = np.random.default_rng(2).random(64)
    result = proof.paired_bootstrap(base, base + 0.25, cluster_B=np.arange(64) // 2)
    np.testing.assert_allclose(result, (0.25, 0.25, 0.25), rtol=1e-12)


def test_two_clusters_by_hand():
    # Clusters with deltas 0 and 1: a resample has mean 0, 1/2 or 1 (1/4, 1/2, 1/4).
    delta, lo, hi = proof.paired_bootstrap([0, 0, 0, 0], [0, 0, 1, 1], cluster_B=[7, 7, 9, 9])
    assert (delta, lo, hi) == (0.5, 0.0, 1.0)


def test_clusters_of_unequal_size_weigh_by_pairs():
    # delta = (1 + 0 + 0 + 0) / 4, not the mean of the cluster means (1/2)
    delta, lo, hi = proof.paired_bootstrap([0] * 4, [1, 0, 0, 0], cluster_B=["a", "b", "b", "b"])
    assert (delta, lo, hi) == (0.25, 0.0, 1.0)


def test_one_cluster_gives_no_interval():
    delta, lo, hi = proof.paired_bootstrap([0.1, 0.2], [0.3, 0.4], cluster_B=[5, 5])
    assert delta == pytest.approx(0.2)
    assert np.isnan([lo, hi]).all()


def test_order_of_pairs_and_names_of_clusters_do_not_matter():
    rng = np.random.default_rng(3)
    base, evolved, cluster = rng.random(30), rng.random(30), np.arange(30) // 3
    order = rng.permutation(30)
    names = np.array([f"id{7 * c % 10}" for c in cluster])
    expected = proof.paired_bootstrap(base, evolved, cluster_B=cluster)
    shuffled = proof.paired_bootstrap(base[order], evolved[order], cluster_B=cluster[order])
    assert shuffled == expected
    assert proof.paired_bootstrap(base, evolved, cluster_B=names) == expected
    assert proof.paired_bootstrap(base[order], evolved[order]) == proof.paired_bootstrap(
        base, evolved
    )


def test_nan_pairs_are_dropped():
    base, evolved = np.array([0.1, NAN, 0.3, 0.5]), np.array([0.2, 0.9, NAN, 0.8])
    expected = proof.paired_bootstrap(base[[0, 3]], evolved[[0, 3]])
    assert proof.paired_bootstrap(base, evolved) == expected
    assert expected[0] == pytest.approx(0.2)
    assert np.isnan(proof.paired_bootstrap([NAN], [0.5])).all()


def test_interval_of_a_known_mean():
    # Normal deltas: the interval is close to mean +- 1.96 sd / sqrt(n).
    delta_B = np.random.default_rng(4).normal(0.1, 0.3, 400)
    delta, lo, hi = proof.paired_bootstrap(np.zeros(400), delta_B)
    half = 1.96 * delta_B.std() / 20
    assert delta == pytest.approx(delta_B.mean(), rel=1e-12)
    np.testing.assert_allclose([lo, hi], [delta - half, delta + half], atol=0.004)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng, hits = np.random.default_rng(5), 0
    for _ in range(200):
        face = np.repeat(rng.normal(0.05, 0.1, 32), 2)  # both seeds of a face share its effect
        delta_B = face + rng.normal(0, 0.02, 64)
        _, lo, hi = proof.paired_bootstrap(
            np.zeros(64), delta_B, resamples=400, cluster_B=np.arange(64) // 2
        )
        hits += lo <= 0.05 <= hi
    assert 0.88 <= hits / 200 <= 0.99


def test_clusters_widen_the_interval_of_dependent_pairs():
    delta_B = np.repeat(np.random.default_rng(6).normal(0, 1, 32), 2)
    _, lo, hi = proof.paired_bootstrap(np.zeros(64), delta_B)
    _, low, high = proof.paired_bootstrap(np.zeros(64), delta_B, cluster_B=np.arange(64) // 2)
    assert (high - low) / (hi - lo) == pytest.approx(2**0.5, rel=0.1)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        proof.paired_bootstrap([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="one shape"):
        proof.paired_bootstrap([0.1, 0.2], [0.1, 0.2], cluster_B=[1])


def small_summary():
    return proof.summary(
        names=("arcface", "gme"),
        prior_M=[1.0, 3.0],
        base_BM=[[0.2, 0.4], [0.4, 0.6], [0.5, NAN], [0.3, 0.5]],
        evolved_BM=[[0.4, 0.5], [NAN, 0.7], [0.7, 0.9], [0.5, 0.6]],
        cluster_B=[0, 0, 1, 1],
        monitor_base={"identity": [0.5, None, 0.5, 0.5], "motion": [1, 1, 1, 1]},
        monitor_evolved={"identity": [0.6, 0.9, 0.6, 0.6], "motion": [1, 1, 1, 1]},
        steps=20,
        seconds={"train": 600.0, "total": 700.0},
    )


def test_summary_by_hand():
    got = small_summary()
    # arcface over videos 0, 2, 3; gme over 0, 1, 3; totals .35 .6 .5 .45 -> .475 .7 .7 .575
    assert got["base"] == pytest.approx({"arcface": 1 / 3, "gme": 0.5, "total": 0.475})
    assert got["evolved"] == pytest.approx({"arcface": 1.6 / 3, "gme": 0.6, "total": 0.6125})
    assert got["delta_total"] == pytest.approx(0.1375)
    assert got["failures"] == {
        "base": {"arcface": 0, "gme": 1},
        "evolved": {"arcface": 1, "gme": 0},
    }
    assert got["delta"]["gme"]["mean"] == pytest.approx(0.1)
    assert got["delta"]["gme"]["pairs"] == 3
    assert (got["pairs"], got["pairs_dropped"], got["identities"]) == (4, 0, 2)
    assert got["monitor"]["base"] == pytest.approx({"identity": 0.5, "motion": 1.0})
    assert got["monitor"]["evolved"] == pytest.approx({"identity": 0.6, "motion": 1.0})
    assert got["monitor_delta"]["identity"]["pairs"] == 3
    assert (got["steps"], got["seconds"]["train"]) == (20, 600.0)


def test_summary_adds_up():
    got = small_summary()
    for name, row in got["delta"].items():
        assert got["evolved"][name] - got["base"][name] == pytest.approx(row["mean"])
        assert row["ci95"][0] - 1e-12 <= row["mean"] <= row["ci95"][1] + 1e-12
    assert got["delta_total"] == got["delta"]["total"]["mean"]
    assert got["delta_total_ci95"] == got["delta"]["total"]["ci95"]


def test_summary_of_a_reward_that_always_failed_is_null_and_counted():
    got = proof.summary(
        ("a", "b"), [1, 1], [[NAN, 0.5]] * 4, [[0.5, 0.75]] * 4, [0, 0, 1, 1], {}, {}, 1, {}
    )
    assert got["base"]["a"] is None
    assert got["delta"]["a"] == {
        "mean": None,
        "ci95": [None, None],
        "pairs": 0,
        "identities": 0,
    }
    assert got["failures"]["base"] == {"a": 4, "b": 0}
    assert got["delta_total"] == pytest.approx(0.25)


def test_a_monitor_that_an_arm_lacks_is_missing_there():
    arms = {"monitor_base": {"motion": [1.0]}, "monitor_evolved": {"motion": [0.5], "face": [1.0]}}
    got = proof.summary(("a",), [1.0], [[0.1]], [[0.2]], [0], **arms, steps=1, seconds={})
    assert got["monitor_delta"]["motion"]["mean"] == -0.5
    assert got["monitor_delta"]["face"]["mean"] is None


def test_summary_wants_a_column_per_reward():
    with pytest.raises(ValueError, match=r"expected scores \(1, 2\)"):
        proof.summary(("a", "b"), [1, 1], [[0.1]], [[0.1]], [0], {}, {}, 1, {})


def test_written_summary_is_strict_json(tmp_path):
    file = proof.write_json(tmp_path / "summary.json", {"x": NAN, "y": np.float32(0.5)})
    assert json.loads(file.read_text(), parse_constant=pytest.fail) == {"x": None, "y": 0.5}


def summary_of(identities, shift=0.1, lost=(), heldout=proof.UNSEEN, seeds=2):
    """Compare arms that differ by about `shift`; evolved lacks reward b in the videos `lost`."""
    rng = np.random.default_rng(7)
    videos = identities * seeds
    base_BM = rng.uniform(0.3, 0.6, (videos, 2))
    evolved_BM = base_BM + shift + rng.normal(0, 0.01, (videos, 2))
    evolved_BM[list(lost), 1] = NAN
    names = np.repeat([f"face {i}" for i in range(identities)], seeds).tolist()
    return proof.summary(
        names=("a", "b"),
        prior_M=[0.9, 0.1],
        base_BM=base_BM,
        evolved_BM=evolved_BM,
        cluster_B=names,
        monitor_base={"motion": base_BM[:, 0]},
        monitor_evolved={"motion": base_BM[:, 0] - 0.2 + evolved_BM[:, 0] / 100},
        steps=5,
        seconds={},
        heldout=heldout,
    )


@pytest.mark.parametrize("shift", [0.1, -0.1])
@pytest.mark.parametrize("identities", [1, 2, 7])
def test_no_verdict_under_eight_identities(identities, shift):
    got = summary_of(identities, shift)
    kind, text = proof.verdict(got)
    assert kind == "flat"
    assert text.startswith("No verdict") and "8 are needed" in text
    assert ("1 identity" if identities == 1 else f"{identities} identities") in text
    assert proof.direction_of(got, "delta", "a") == "flat"  # nor a colour for any one reward
    assert proof.fallen(got) == []


def test_verdict_follows_the_interval_from_eight_identities_on():
    for shift, kind, word in ((0.1, "up", "better"), (-0.1, "down", "worse")):
        got = proof.verdict(summary_of(8, shift))
        assert got[0] == kind and f"is {word} on unseen identities" in got[1]
    kind, text = proof.verdict(summary_of(8, 0.0))
    assert kind == "flat" and "No clear difference" in text
    assert proof.direction_of(summary_of(8), "delta", "a") == "up"
    assert proof.fallen(summary_of(8)) == ["motion"]


def test_many_seeds_of_few_faces_are_few_identities():
    assert proof.verdict(summary_of(2, seeds=40))[0] == "flat"


def test_identities_without_scores_do_not_count():
    base, evolved = np.full((20, 1), 0.4), np.full((20, 1), 0.5)
    evolved[6:] = NAN  # three of ten faces are left
    faces = [str(b // 2) for b in range(20)]
    got = proof.summary(("a",), [1.0], base, evolved, faces, {}, {}, 1, {}, heldout=proof.UNSEEN)
    assert (got["identities"], got["pairs"], got["pairs_dropped"]) == (3, 6, 14)
    assert proof.verdict(got)[0] == "flat"


def test_words_say_what_was_measured():
    unseen, trained = (summary_of(9, heldout=x) for x in (proof.UNSEEN, proof.TRAINED))
    assert "unseen identities" in proof.verdict(unseen)[1]
    text = proof.verdict(trained)[1]
    assert "training pairs, new seeds" in text and "Other people were not measured" in text
    assert "unseen" not in text and "held-out" not in text
    unknown = {key: value for key, value in unseen.items() if key != "heldout"}
    assert "not recorded" in proof.verdict(unknown)[1]


def test_no_verdict_where_a_reward_with_weight_is_often_missing():
    kind, text = proof.verdict(summary_of(10, lost=range(3)))  # 15 % of 20 pairs
    assert kind == "flat" and "b in 15%" in text and "more than 10%" in text
    assert proof.verdict(summary_of(10, lost=range(2)))[0] == "up"  # 10 %
    unused = summary_of(10, lost=range(20)) | {"prior": {"a": 1.0, "b": 0.0}}
    assert proof.verdict(unused)[0] == "up"


def test_no_verdict_without_an_interval_or_a_count():
    got = summary_of(10) | {"delta_total_ci95": [None, None]}
    assert proof.verdict(got) == ("flat", "No verdict: there is no interval.")
    old = {key: value for key, value in summary_of(10).items() if key != "identities"}
    assert proof.verdict(old)[0] == "flat" and "not recorded" in proof.verdict(old)[1]


def test_intervals_over_eight_identities_cover_nine_in_ten():
    """Fewer cover less than they say by far: the reason for proof.ENOUGH."""
    rng, covered = np.random.default_rng(8), {}
    for faces in (2, proof.ENOUGH):
        ends = [
            proof.paired_bootstrap(np.zeros(faces), rng.normal(0, 1, faces), resamples=400)
            for _ in range(400)
        ]
        covered[faces] = np.mean([lo <= 0 <= hi for _, lo, hi in ends])
    assert covered[2] < 0.6 and 0.84 < covered[proof.ENOUGH] < 0.94


def test_summary_refuses_what_it_cannot_tell_apart():
    scores = [[0.1, 0.2]]
    for names in (("a", "a"), ("a", "total")):
        with pytest.raises(ValueError, match="names of their own"):
            proof.summary(names, [1, 1], scores, scores, ["x"], {}, {}, 1, {})
    with pytest.raises(ValueError, match="identity"):
        proof.summary(("a", "b"), [1, 1], scores, scores, [None], {}, {}, 1, {})
