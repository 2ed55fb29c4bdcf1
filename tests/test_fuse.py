import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evoid_jax import config
from evoid_jax.rewards import fuse, table

P7 = np.array([0.125, 0.125, 0.15, 0.18, 0.09, 0.30, 0.03])
G7 = np.array([0, 0, 1, 2, 2, 2, 2])
P8, G8 = np.append(P7, 0.30), np.append(G7, 2)
WEIGHTS = {  # name: prior, group, attention, tau, gamma, final weights
    "A": (
        P7, G7, (2, 3, 8), 1, 0.5,
        [0.109375, 0.109375, 0.2, 0.174375, 0.0871875, 0.290625, 0.0290625],
    ),
    "B": (
        P7, G7, (0, 0, 0), 1, 0.5,
        [0.145833, 0.145833, 0.241667, 0.14, 0.07, 0.233333, 0.023333],
    ),
    "C": (P7, G7, (2, 3, 8), 1, 0.0, P7),
    "D": (P7, G7, (0, 0, 10), 0, 1.0, [0, 0, 0, 0.3, 0.15, 0.5, 0.05]),
    "E": (
        P8, G8, (8, 2, 5), 1, 0.5,
        [0.173077, 0.173077, 0.141026, 0.102564, 0.051282, 0.170940, 0.017094, 0.170940],
    ),
    "G": (np.ones(7), G7, (2, 3, 8), 1, 0.5, [0.118304, 0.118304, 0.196429] + [0.141741] * 4),
}  # fmt: skip
NAN = float("nan")
compiled = jax.jit(fuse.normalize)
EIGHT = [0.60, 0.62, 0.65, 0.70, 0.55, 0.64, 0.66, 0.58]


def normalize(column, valid=None, group=None, clip=2.0, floor=0.0):
    """Normalise one metric given as a plain list."""
    column = np.asarray(column, np.float32)[:, None]
    valid = np.ones(column.shape, bool) if valid is None else np.asarray(valid, bool)[:, None]
    group = np.zeros(len(column), int) if group is None else np.asarray(group)
    return np.asarray(compiled(column, valid, group, clip, np.array([floor])))[:, 0]


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_by_hand(name):
    prior, group, attention, tau, gamma, want = WEIGHTS[name]
    got = fuse.final_weights(prior, group, np.array(attention), tau, gamma)
    np.testing.assert_allclose(got, want, atol=6e-7)
    np.testing.assert_allclose(np.sum(got), 1, atol=1e-6)


@pytest.mark.parametrize(
    "clip,want",
    [
        (5.0, [0.444223, 0.488845, 0.555777, 0.667331, 0.332669, 0.533466, 0.578088, 0.399601]),
        (2.0, [0.360558, 0.472112, 0.639442, 0.918327, 0.081673, 0.583665, 0.695219, 0.249004]),
    ],
)
def test_rewards_by_hand(clip, want):
    """The vectors divide by std + 1e-4; ours by max(std, floor): undo that 0.22 %."""
    got = normalize(EIGHT, clip=clip)
    np.testing.assert_allclose((got - 0.5) * 0.04472136 / 0.04482136 + 0.5, want, atol=2e-6)


def test_pairs_do_not_mix():
    got = normalize([1, 2, 3, 10, 10, 10], group=[0, 0, 0, 1, 1, 1], clip=5.0)
    np.testing.assert_allclose(got, [0.377526, 0.5, 0.622474, 0.5, 0.5, 0.5], atol=1e-6)


def test_equal_scores_give_one_half_exactly():
    """Whatever their value and number; a plain mean of three 0.1 is not 0.1 in float32."""
    values_M = np.array([0.0, 0.1, 1 / 3, 0.7, 1e6, -2.3e-7], np.float32)
    group_B = np.repeat(np.arange(5), [1, 2, 3, 7, 8])
    scores_BM = np.tile(values_M, (21, 1)) + 0.37 * group_B[:, None].astype(np.float32)
    got = fuse.normalize(scores_BM, np.ones((21, 6), bool), group_B, 2.0, np.zeros(6))
    np.testing.assert_array_equal(got, np.full((21, 6), 0.5, np.float32))


def test_floor_quiets_noise():
    noisy = normalize([0.5, 0.5001], floor=0.01)
    np.testing.assert_allclose(noisy, [0.5 - 0.00125, 0.5 + 0.00125], atol=1e-5)
    np.testing.assert_allclose(normalize([0.5, 0.5001], clip=1.0), [0, 1], atol=1e-6)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e30, 0.0])
def test_invalid_entries_touch_nothing(junk):
    alone = normalize([0.1, 0.4, 0.9])
    got = normalize([0.1, junk, 0.4, junk, 0.9], valid=[1, 0, 1, 0, 1])
    np.testing.assert_array_equal(got[[0, 2, 4]], alone)
    np.testing.assert_array_equal(got[[1, 3]], [0.5, 0.5])


def test_one_member_and_none():
    np.testing.assert_array_equal(normalize([0.3, 0.8], valid=[1, 0]), [0.5, 0.5])
    np.testing.assert_array_equal(normalize([np.nan, np.nan], valid=[0, 0]), [0.5, 0.5])
    np.testing.assert_array_equal(normalize([0.3, np.nan]), [0.5, 0.5])  # claims to be valid


def draw(seed=0, videos=12, metrics=4):
    rng = np.random.default_rng(seed)
    scores_BM = rng.normal(size=(videos, metrics)).astype(np.float32)
    return scores_BM, rng.random((videos, metrics)) < 0.8, rng.integers(0, 3, videos)


def test_normalize_laws():
    scores_BM, valid_BM, group_B = draw()
    floor_M = np.zeros(4, np.float32)
    base = np.asarray(fuse.normalize(scores_BM, valid_BM, group_B, 2.0, floor_M))
    assert base.min() >= 0 and base.max() <= 1
    for scale, shift in [(3.0, 5.0), (1e-6, 0.0), (1e6, -1e6)]:  # a metric's unit is its own affair
        moved = fuse.normalize(scores_BM * scale + shift, valid_BM, group_B, 2.0, floor_M)
        np.testing.assert_allclose(moved, base, atol=1e-5)
    order = np.random.default_rng(1).permutation(12)
    shuffled = fuse.normalize(scores_BM[order], valid_BM[order], group_B[order], 2.0, floor_M)
    np.testing.assert_allclose(shuffled, base[order], atol=1e-6)
    keys_B = np.array([2**40, -7, 2**40 + 2**32])[group_B]  # any distinct ints name the pairs
    np.testing.assert_array_equal(fuse.normalize(scores_BM, valid_BM, keys_B, 2.0, floor_M), base)
    for pair in range(3):
        for m in range(4):
            rows = np.flatnonzero((group_B == pair) & valid_BM[:, m])
            ranks = np.argsort(scores_BM[rows, m])
            assert np.all(np.diff(base[rows, m][ranks]) >= 0)
            if len(rows):
                np.testing.assert_allclose(base[rows, m].mean(), 0.5, atol=1e-6)


@pytest.mark.parametrize(
    "clip,want",
    [
        # std 1, z: three -1/sqrt 3 and one sqrt 3; nothing is clipped
        (2.0, [0.355662, 0.355662, 0.355662, 0.933013]),
        # u = -.57735 three times, and 1 for 1.73205: mean -.183013, which takes the 1 out of range
        (1.0, [0.333333, 0.333333, 0.333333, 1.0]),
        # u = -1 three times and 1: mean -1/2, so -1/2 and 3/2, which is shrunk to -1/3 and 1
        (0.1, [0.333333, 0.333333, 0.333333, 1.0]),
    ],
)
def test_one_good_video_among_bad_ones_by_hand(clip, want):
    np.testing.assert_allclose(normalize([0.2, 0.2, 0.2, 0.8], clip=clip), want, atol=2e-6)


def test_clipping_by_hand():
    """z = -1.69775, .242536, .727607 twice; u = -1, .485071, 1, 1 at a clip of 1/2."""
    got = normalize([0.1, 0.5, 0.6, 0.6], clip=0.5)
    # less their mean .371268: -1.371268, .113803, .628732 twice; then divided by 1.371268
    np.testing.assert_allclose(got, [0, 0.541496, 0.729252, 0.729252], atol=2e-6)


@pytest.mark.parametrize("clip", [0.1, 0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("seed", range(6))
def test_rewards_are_centred_whatever_is_clipped(clip, seed):
    """Ties, missing scores, pairs of one, and a pair with one failing video among them."""
    rng = np.random.default_rng(seed)
    group_B = np.repeat([4, 0, 7, 2, 9], [1, 8, 5, 8, 2])
    scores_BM = rng.normal(size=(24, 5)).round(rng.integers(0, 3)).astype(np.float32)
    scores_BM[group_B == 2] = 0.9 + 0.01 * rng.random((8, 5))
    scores_BM[np.flatnonzero(group_B == 2)[3]] = 0.0
    valid_BM = rng.random((24, 5)) < 0.8
    scores_BM[~valid_BM] = np.nan
    got_BM = np.asarray(fuse.normalize(scores_BM, valid_BM, group_B, clip, np.full(5, 0.003)))
    assert got_BM.min() >= 0 and got_BM.max() <= 1
    np.testing.assert_array_equal(got_BM[~valid_BM], 0.5)
    for pair in np.unique(group_B):
        for m in range(5):
            rows = np.flatnonzero((group_B == pair) & valid_BM[:, m])
            if len(rows) == 0:
                continue
            np.testing.assert_allclose(got_BM[rows, m].mean(), 0.5, atol=1e-6)
            score_b, got_b = scores_BM[rows, m], got_BM[rows, m]
            assert np.all(np.diff(got_b[np.argsort(score_b)]) >= 0)
            for value in np.unique(score_b):
                assert len(np.unique(got_b[score_b == value])) == 1


def test_weights_laws():
    weights = lambda s, tau=1.0, gamma=0.5, prior=P7: np.asarray(
        fuse.final_weights(prior, G7, np.array(s, np.float32), tau, gamma)
    )
    np.testing.assert_allclose(weights((2, 3, 8), prior=P7 * 40), weights((2, 3, 8)), atol=1e-6)
    got = weights((9, 1, 0.5))
    np.testing.assert_allclose(got[3:] / got[3], P7[3:] / P7[3], rtol=1e-5)  # priors inside a group
    more = weights((9, 1, 5))
    assert np.all(more[3:] > got[3:]) and np.all(more[:3] < got[:3])
    np.testing.assert_allclose(weights((0, 0, 0), tau=0.0), P7, atol=1e-6)
    np.testing.assert_allclose(weights((0, 0, 0), tau=0.0, gamma=1.0), P7, atol=1e-6)
    np.testing.assert_allclose(weights((7, 0, 1), tau=1e6, gamma=1.0)[2], 1 / 3, atol=1e-5)


@pytest.mark.parametrize("attention", [(5, 5, 5), (0, 10, 0)])
def test_a_group_without_prior_takes_no_share(attention):
    prior = np.where(G7 == 1, 0, P7)
    got = np.asarray(fuse.final_weights(prior, G7, np.array(attention), 0.0, 1.0))
    np.testing.assert_allclose(got.sum(), 1, atol=1e-6)
    assert got[2] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"attention_G": np.array([1.0, -1.0, 2.0])},
        {"attention_G": np.array([1.0, np.nan, 2.0])},
        {"attention_G": np.array([1.0, np.inf, 2.0])},
        {"gamma": 1.5},
        {"tau": -1.0},
        {"prior_M": np.zeros(7)},
        {"prior_M": -P7},
        {"group_M": G7 + 1},
    ],
)
def test_bad_weights_arguments_are_refused(change):
    good = {"prior_M": P7, "group_M": G7, "attention_G": np.ones(3), "tau": 1.0, "gamma": 0.5}
    with pytest.raises(ValueError, match="got"):
        fuse.final_weights(**(good | change))


def weigh(rewards_BM, valid_BM, weights_M, group_M):
    return fuse.unify(rewards_BM, fuse.shares(valid_BM, weights_M, group_M))


def test_unify_by_hand():
    weights_M, group_M = np.array([0.2, 0.3, 0.1, 0.4]), np.array([0, 0, 1, 2])
    rewards_BM = np.tile(np.array([[1.0, 0.5, 0.2, 0.6]], np.float32), (5, 1))
    valid_BM = np.array(
        [[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]], bool
    )
    rewards_BM[~valid_BM] = np.nan
    reward_B, valid_B = weigh(rewards_BM, valid_BM, weights_M, group_M)
    want = [
        0.2 * 1 + 0.3 * 0.5 + 0.1 * 0.2 + 0.4 * 0.6,
        0.5 * 0.5 + 0.1 * 0.2 + 0.4 * 0.6,  # metric 1 carries the whole group's .5
        (0.2 * 1 + 0.3 * 0.5 + 0.4 * 0.6) / 0.9,  # group 1 is gone
        0.6,
        0.5,
    ]
    np.testing.assert_allclose(reward_B, want, atol=1e-6)
    np.testing.assert_array_equal(valid_B, [True, True, True, True, False])


def test_unify_laws():
    scores_BM, valid_BM, group_B = draw(metrics=7)
    rewards_BM = fuse.normalize(scores_BM, valid_BM, group_B, 2.0, np.zeros(7))
    weights_M = fuse.final_weights(P7, G7, np.array([2.0, 3.0, 8.0]), 1.0, 0.5)
    reward_B, valid_B = weigh(rewards_BM, valid_BM, weights_M, G7)
    assert np.all((reward_B >= 0) & (reward_B <= 1)) and np.all(valid_B)
    ones_B, _ = weigh(np.ones((12, 7)), valid_BM, weights_M, G7)
    np.testing.assert_allclose(ones_B, 1, atol=1e-6)  # whatever is missing, weights sum to one
    order = np.array([6, 2, 0, 5, 1, 3, 4])
    same_B, _ = weigh(rewards_BM[:, order], valid_BM[:, order], weights_M[order], G7[order])
    np.testing.assert_allclose(same_B, reward_B, atol=1e-6)
    names_B, _ = weigh(rewards_BM, valid_BM, weights_M, np.array([9, -3, 40])[G7])
    np.testing.assert_array_equal(names_B, reward_B)
    better_B, _ = weigh(rewards_BM.at[:, 3].add(0.1), valid_BM, weights_M, G7)
    np.testing.assert_array_equal(better_B > reward_B, valid_BM[:, 3])


def test_a_blank_counts_as_nothing_only_beside_a_score():
    score_BM = np.array([[0.3, NAN, NAN], [NAN, NAN, NAN], [0.2, 0.7, NAN]], np.float32)
    valid_BM, blank_BM = np.isfinite(score_BM), np.zeros((3, 3), bool)
    blank_BM[1] = True
    filled_BM, known_BM = fuse.fill_blanks(score_BM, valid_BM, blank_BM, np.array([5, 5, 5]))
    np.testing.assert_array_equal(filled_BM[1, :2], [0, 0])
    np.testing.assert_array_equal(known_BM, [[1, 0, 0], [1, 1, 0], [1, 1, 0]])
    _, known_BM = fuse.fill_blanks(score_BM, valid_BM, blank_BM, np.array([5, 5, 6]))
    np.testing.assert_array_equal(known_BM, [[1, 0, 0], [1, 0, 0], [1, 1, 0]])


def test_videos_that_lack_what_their_pair_has_are_left_out():
    known_BM = np.array(
        [
            [1, 1, 0, 1], [1, 1, 0, 1], [1, 0, 0, 1],  # nobody has metric 2: it leaves the pair
            [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0],  # metric 3 only watches
            [1, 1, 1, 1], [0, 0, 0, 0],  # one alone is compared with nothing
            [0, 0, 0, 1], [0, 0, 0, 1],  # nothing that counts
        ],
        bool,
    )  # fmt: skip
    counts_M, group_B = np.array([1, 1, 1, 0], bool), np.repeat(np.arange(4), [3, 3, 2, 2])
    used_BM, valid_B = fuse.settle(known_BM, counts_M, group_B)
    np.testing.assert_array_equal(valid_B, [1, 1, 0, 1, 0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(used_BM[:, :3], known_BM[:, :3] & np.asarray(valid_B)[:, None])
    np.testing.assert_array_equal(used_BM[:, 3], known_BM[:, 3])


@pytest.mark.parametrize("seed", range(8))
def test_a_pair_is_compared_by_one_set_of_weights(seed):
    rng = np.random.default_rng(seed)
    known_BM, group_B = rng.random((24, 7)) < 0.93, np.repeat(np.arange(3), 8)
    used_BM, valid_B = fuse.settle(known_BM, P7 > 0, group_B)
    share_BM = np.asarray(fuse.shares(used_BM, P7, G7))
    rewards_BM = fuse.normalize(rng.random((24, 7)), used_BM, group_B, 0.5, np.zeros(7))
    reward_B, _ = fuse.unify(rewards_BM, share_BM)
    valid_B = np.asarray(valid_B)
    assert 2 <= valid_B.sum() < 24
    for pair in range(3):
        rows = np.flatnonzero((group_B == pair) & valid_B)
        if len(rows):
            np.testing.assert_array_equal(share_BM[rows], share_BM[rows[:1]].repeat(len(rows), 0))
            np.testing.assert_allclose(reward_B[rows].mean(), 0.5, atol=1e-6)  # centred as a whole


def test_only_worthless_rewards_are_no_reward():
    reward_B, valid_B = weigh(np.ones((1, 2)), np.ones((1, 2)), np.array([0.0, 0.0]), G7[1:3])
    assert reward_B[0] == 0.5 and not valid_B[0]
    reward_B, valid_B = weigh(
        np.array([[0.9, 0.2, 0.7]]), np.array([[0, 1, 1]]), np.array([0.5, 0.0, 0.5]), G7[:3]
    )
    assert valid_B[0]
    np.testing.assert_allclose(reward_B, [0.7], atol=1e-6)


def test_floors_by_hand():
    within_SM = np.array([[0.10, 0.002, NAN, 1e-6], [0.30, 0.004, NAN, 2e-6]])
    overall_SM = np.array([[0.40, 0.5, NAN, 3e-6], [0.20, 0.7, NAN, 1e-6]])
    want = [
        0.25 * 0.2,  # the median within pairs
        0.02 * 0.6,  # videos of a pair hardly differ, pairs do: 0.25 * 0.003 would be less
        1e-5,  # never had
        1e-5,  # the same for every video, but for the last digit
    ]
    np.testing.assert_allclose(fuse.floors(within_SM, overall_SM, 0.25, np.zeros(4)), want)
    least_M = np.array([0.01, 0.01, 0.03, 0])  # of the table
    got = fuse.floors(within_SM[:1], overall_SM[:1], 0.25, least_M)  # the first step
    np.testing.assert_allclose(got, [0.025, 0.01, 0.03, 1e-5])


def test_the_same_score_but_for_its_last_digit_is_no_reward():
    """The floor is the rounding, 1e-5: z is 0.05 where the std is 5e-7."""
    score_BM = np.array([[0.999999], [1.0]], np.float32)
    floor_M = fuse.floors(np.array([[5e-7]]), np.array([[5e-7]]), 0.25, np.zeros(1))
    got = fuse.normalize(score_BM, np.ones((2, 1), bool), np.zeros(2, int), 2.0, floor_M)
    np.testing.assert_allclose(got[:, 0], [0.4875, 0.5125], atol=1e-3)


def test_deviation_by_hand():
    score_BM = np.array([[0, 0.5, NAN], [2, 0.5, 1], [0, 0.1, NAN], [6, 0.5, 2], [9, NAN, 5]])
    got = fuse.deviation(score_BM, np.array([0, 0, 1, 1, 2]))
    np.testing.assert_allclose(got, [2, 0.1, NAN])  # (1 + 3) / 2, (0 + .2) / 2, no pair


def test_under_jit_everything_is_the_same():
    scores_BM, valid_BM, group_B = draw(metrics=7)
    scores_BM[~valid_BM] = np.nan

    def whole(scores_BM, valid_BM, group_B, attention_G):
        rewards_BM = fuse.normalize(scores_BM, valid_BM, group_B, 2.0, np.full(7, 0.01))
        weights_M = fuse.final_weights(P7, G7, attention_G, 1.0, 0.5)
        return weigh(rewards_BM, valid_BM, weights_M, G7)

    data = (scores_BM, valid_BM, group_B, np.array([2.0, 3.0, 8.0]))
    scores_BM, valid_BM, group_B, attention_G = map(jnp.asarray, data)
    outright = whole(scores_BM, valid_BM, group_B, attention_G)
    jitted = jax.jit(whole)(scores_BM, valid_BM, group_B, attention_G)
    for plain, compiled in zip(outright, jitted, strict=True):
        np.testing.assert_allclose(plain, compiled, atol=1e-6)
        assert np.all(np.isfinite(compiled))


def test_the_table():
    prior_M, group_M, floor_M = table.arrays(config.METRICS)
    np.testing.assert_allclose(prior_M, P8, atol=1e-7)
    np.testing.assert_array_equal(group_M, G8)
    assert floor_M.shape == (8,) and table.names(config.METRICS)[-1] == config.JUDGE
    np.testing.assert_allclose(prior_M[:7].sum(), 1, atol=1e-6)
    one = table.arrays(config.METRICS[2:3])
    np.testing.assert_array_equal(one[1], [1])


def test_saturation_is_the_share_of_known_scores_at_an_end():
    nan = np.nan
    score_BM = np.array([[0.0, 0.5, nan], [1.0, 0.0005, nan], [0.4, nan, nan], [0.9995, 0.3, nan]])
    np.testing.assert_allclose(fuse.saturation(score_BM), [3 / 4, 1 / 3, nan])
