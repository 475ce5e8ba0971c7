"""Every claim at the edge of its answer, asked of the published reading, which counts plainly."""

import pandas as pd
import pytest

from lib import claims, tables
from tests.test_tables import cell, closed, grid, record, verdict

FLAT = dict.fromkeys(tables.THESIS, 20.0)
CIFAR = [(model, dataset) for model in ("vgg16", "resnet56") for dataset in ("cifar10", "cifar100")]


def made(tops, model="vgg16", dataset="cifar10", ratios=(32, 64), errors=(), seed=42, reading=""):
    """tops: method -> top-1 in percent, one for all ratios or one for each; errors: method -> of each ratio, in percent."""
    errors = dict(errors)
    return tables.frame(
        record(cell(base + reading, ratio, dataset, model, seed), [round(100 * top)] * 3, achieved=ratio * shrink,
               released=ratio * shrink)
        for base, values in tops.items()
        for place, ratio in enumerate(ratios)
        for top in [values[place] if isinstance(values, tuple) else values]
        for shrink in [1 + errors[base][place] / 100 if base in errors else 1])


def both(tops, other=None, **options):
    """CIFAR-10 and CIFAR-100 (`other`, by default the same numbers)."""
    return pd.concat([made(tops, dataset="cifar10", **options), made(other or tops, dataset="cifar100", **options)],
                     ignore_index=True)


def everywhere(tops, **options):
    return pd.concat([made(tops, model, dataset, **options) for model, dataset in CIFAR], ignore_index=True)


def published(frame, text):
    return verdict(frame, text, "published")


def obtained(frame, text, reading="published"):
    [claim] = [claim for claim in claims.CLAIMS if text in claim.text]
    return claims.judge(claim, frame, reading)[0]


# ---- what a claim sees

def test_a_claim_is_decided_by_the_seeds_that_have_all_its_cells_alone():
    whole = made(FLAT | {"SNIP": 30})
    part = made({base: top for base, top in FLAT.items() if base != "LAMP"} | {"OBD": 90, "GlobalMag": 90}, seed=43)
    frame = pd.concat([whole, part], ignore_index=True)
    text = "CIFAR-10 at r = 32: SNIP is best"
    assert published(frame, text) == "agrees"
    assert published(pd.concat([whole, made(FLAT | {"GlobalMag": 90}, seed=43)], ignore_index=True), text) == "disagrees"


def test_over_seeds_it_is_the_mean_that_counts():
    text = "CIFAR-10 at r = 32: SNIP is best"
    one, other = FLAT | {"SNIP": 50, "LAMP": 60}, FLAT | {"SNIP": 50, "LAMP": 30}
    frame = pd.concat([made(one), made(other, seed=43)], ignore_index=True)
    assert published(frame, text) == "agrees" and obtained(frame, text).startswith("SNIP 50.00, LAMP 45.00")
    assert "Decided by the means of those seeds" in claims.claims_table(frame).caption
    assert "Decided by" not in claims.claims_table(made(one)).caption


@pytest.mark.parametrize("top, reading, at_chance", [
    (10.5, "", True), (10.51, "", False), (10.5, "@run", True), (10.6, "@run", False)])   # both sides times 0.98892
def test_chance_level_ends_five_percent_above_it_in_the_readings_accounting(top, reading, at_chance):
    frame = made(FLAT | {"LAMP": top}, reading=reading)
    view = claims.View(frame, reading.removeprefix("@") or "published")
    assert bool(view.at_chance(view.top1("vgg16", 10), "vgg16", 10).loc["LAMP", 32]) == at_chance


# ---- places

def test_nobody_is_first_in_a_tie():
    assert published(made(FLAT | {"SNIP": 50, "LAMP": 50}), "CIFAR-10 at r = 32: SNIP is best") == "disagrees"


@pytest.mark.parametrize("wins, answer", [
    ((2, 2), "agrees"), ((2, 1), "agrees"), ((1, 1), "disagrees"), ((2, 0), "disagrees")])
def test_snip_is_first_in_three_of_four_columns_of_resnet(wins, answer):
    tops = [FLAT | {"SNIP": tuple(50 if place < first else 10 for place in range(2))} for first in wins]
    assert published(both(*tops, model="resnet56"), "SNIP is best where compression errors are small") == answer


@pytest.mark.parametrize("last, answer", [(85.0, "agrees"), (15.0, "disagrees")])
def test_the_most_consistent_has_the_best_mean_rank_not_the_best_of_its_worst(last, answer):
    tops = FLAT | {"SNIP": 90.0, "LAMP": 80.0, "Random": 83.0, "GlobalMag": 82.0}
    other = tops | {"SNIP": (90, last), "LAMP": 88.0}     # LAMP is never worse than fourth
    frame = both(tops | {"SNIP": 90.0}, other)
    assert published(frame, "SNIP is the most consistent over all ratios") == answer
    expected = {85.0: "SNIP 1.2", 15.0: "Random 2.2"}[last]
    assert obtained(frame, "SNIP is the most consistent over all ratios").startswith(f"mean rank: {expected}, ")


# ---- collapse

@pytest.mark.parametrize("failed, answer", [
    (["GlobalMag"], "agrees"), ([], "disagrees"), (["GlobalMag", "LayerMag"], "disagrees"), (["LayerMag"], "disagrees")])
def test_global_methods_collapse_where_layer_wise_ones_survive(failed, answer):
    assert published(closed(both(FLAT), **dict.fromkeys(failed, 64)), "layer-wise ones survive") == answer


@pytest.mark.parametrize("dead_from, answer", [(4, "agrees"), (8, "agrees"), (16, "disagrees"), (128, "disagrees")])
def test_grasp_has_collapsed_by_8(dead_from, answer):
    ratios = (4, 8, 16, 64)
    frame = closed(made({"GraSP": 20}, dataset="cifar100", ratios=ratios), GraSP=dead_from)
    assert published(frame, "GraSP collapses almost at once") == answer
    assert obtained(frame, "GraSP collapses almost at once") == (
        "nothing passes: GraSP at no r" if dead_from > 64 else f"nothing passes: GraSP from r = {dead_from}")


def test_masks_that_let_nothing_pass_are_counted():
    frame = grid(dict.fromkeys(tables.ORDER, 10), readings=("",))
    frame.loc[frame["base"].isin(["LAMP", "Random"]), "collapsed"] = True
    assert obtained(frame, "every other method has collapsed").endswith("no path, in most seeds: 2")


# ---- what is kept from r = 32 to 64

def shares(lamp, less, more, others=0.5):
    """LAMP keeps `lamp` of its top-1, `less` others keep half of it, `more` keep 90 % of theirs."""
    names = [base for base in tables.THESIS if base not in ("GraSP", "LAMP")]
    assert len(names) == less + more
    tops = {base: (50, 50 * others) for base in names[:less]} | {base: (50, 45) for base in names[less:]}
    return tops | {"LAMP": (50, 50 * lamp), "GraSP": 20}


@pytest.mark.parametrize("less, answer", [(6, "agrees"), (5, "disagrees")])
def test_lamp_keeps_more_than_most_others(less, answer):
    frame = both(shares(0.8, less, 11 - less), reading="@run")
    assert verdict(frame, "LAMP is more consistent") == answer
    assert obtained(frame, "LAMP is more consistent", "run") == f"LAMP keeps 80 %, {less} of 11 others less"


def test_published_grasp_is_among_the_others():
    assert obtained(both(shares(0.8, 6, 5)), "LAMP is more consistent") == "LAMP keeps 80 %, 6 of 12 others less"
    assert published(made(FLAT | {"SNIP": 50, "GraSP": 60}), "CIFAR-10 at r = 32: SNIP is best") == "disagrees"


def test_half_of_the_others_are_not_most():
    tops = shares(0.8, 6, 5)
    dead = next(base for base, values in tops.items() if values == (50, 25.0))
    for others in (tops | {dead: 1}, tops):      # at chance already at r = 32, on both or on one
        part = both(others, tops | {dead: 1}, reading="@run")
        assert obtained(part, "LAMP is more consistent", "run") == "LAMP keeps 80 %, 5 of 10 others less"
        assert verdict(part, "LAMP is more consistent") == "disagrees"


def test_who_collapses_between_the_two_has_kept_less():
    assert verdict(both(shares(0.8, 6, 5, others=0.02), reading="@run"), "LAMP is more consistent") == "agrees"


# ---- compression

@pytest.mark.parametrize("errors, answer", [
    ((-45, -45, -45), "agrees"), ((-55, -55, -55), "agrees"), ((-42, -42, -42), "disagrees"), ((-58, -58, -58), "disagrees"),
    ((-55.4, -55.4, -55.4), "agrees"), ((-44.6, -44.6, -44.6), "agrees"), ((-55.6, -55.6, -55.6), "disagrees"),
    ((-50, -50, 0), "agrees"), ((-50, 0, 0), "disagrees"),    # the median, not the mean
])
def test_under_pruning_is_of_the_rounded_median(errors, answer):
    frame = made({"GraSP": 20}, ratios=(2, 8, 64), errors={"GraSP": errors})
    assert published(frame, "GraSP nearly always under-prunes by 50 %") == answer


@pytest.mark.parametrize("error, answer", [(-19, "disagrees"), (-20, "agrees"), (-50, "agrees"), (-51, "disagrees")])
def test_obd_under_prunes_by_20_to_50_percent(error, answer):
    frame = made({"OBD": 20}, "cnn", "mnist", errors={"OBD": (error, error)})
    assert published(frame, "OBD under-prunes by 20-50 %") == answer


@pytest.mark.parametrize("errors, answer", [
    ((-10, -50, -20), "agrees"),        # the worst is in the middle
    ((-50, -20, -46), "disagrees"), ((-50, -20, -44), "agrees"),
    ((-12, -12, 10), "disagrees"),      # too much is an error too
])
def test_recovery_is_from_the_worst_to_the_last(errors, answer):
    frame = made({"GraSP": 20, "OBD": 20}, "cnn", "mnist", (2, 8, 64), errors={"GraSP": errors, "OBD": errors})
    assert published(frame, "both start to recover") == answer


@pytest.mark.parametrize("errors, answer", [((0, -98), "agrees"), ((-98, 0), "disagrees"), ((0, -96.875), "disagrees")])
def test_hardly_pruning_is_of_the_largest_ratio_and_less_than_twofold(errors, answer):
    frame = made({"SynFlow": 20}, "resnet56", errors={"SynFlow": errors})
    assert published(frame, "SynFlow hardly prunes") == answer


@pytest.mark.parametrize("one, other, answer, told", [
    ((-10, 0), (-10, 0.4), "agrees", "up to 1 points apart (LAMP at r = 32)"),
    ((-10, 0), (-5.1, 0), "agrees", "up to 5 points apart (GraSP at r = 32)"),
    ((-10, 0), (-4, 0), "disagrees", "up to 6 points apart (GraSP at r = 32); more than 5 in 1 of 26"),
    ((0, 3), (0, -3), "disagrees",      # at one ratio of two, whatever the sign
     "up to 6 points apart (GraSP at r = 64); more than 5 in 1 of 26"),
])
def test_errors_on_two_data_sets_are_compared_method_by_method_and_ratio_by_ratio(one, other, answer, told):
    frame = pd.concat([made(FLAT, dataset="cifar10", errors={"GraSP": one, "LAMP": (0, 0)}),
                       made(FLAT, dataset="cifar100", errors={"GraSP": other, "LAMP": (1, 0)})], ignore_index=True)
    text = "VGG-16: compression errors on CIFAR-100 differ negligibly"
    assert published(frame, text) == answer and obtained(frame, text) == told
    assert published(both(FLAT), text) == "does not arise" and obtained(both(FLAT), text) == claims.EXACT


def test_a_compression_is_exact_that_is_nowhere_half_a_percent_off():
    for errors, exact in (((0, 0.4), True), ((0.1, -0.6), False)):
        frame = made({"GraSP": 20}, errors={"GraSP": errors})
        text = "GraSP nearly always under-prunes by 50 %"
        assert (obtained(frame, text) == claims.EXACT) == (published(frame, text) == "does not arise") == exact


# ---- one against another

@pytest.mark.parametrize("grasp, snip, answer", [
    ((90, 50), (55, 5), "agrees"), ((90, 50), (45, 5), "agrees"), ((90, 50), (55.1, 5), "disagrees"),
    ((90, 30), (50, 5), "disagrees"), ((90, 50), (30, 5), "agrees"), ((10, 50), (52, 10), "agrees"),
    ((50, 10), (10, 50), "disagrees"), ((50, 13), (10, 50), "disagrees"), ((50, 10), (13, 50), "disagrees"),
])
def test_grasp_at_64_is_as_good_as_snip_at_32_where_both_live(grasp, snip, answer):
    frame = made({"GraSP": grasp, "SNIP": snip}, reading="@run")
    assert verdict(frame, "about as good as SNIP") == answer


@pytest.mark.parametrize("first, second, answer", [(10, 10, "agrees"), (10, 60, "disagrees"), (60, 60, "disagrees"),
                                                   (50, 50, "disagrees")])
def test_grasp_loses_in_most_cases_to_snip_at_half_the_compression(first, second, answer):
    tops = [{"SNIP": (50, 5), "GraSP": (5, grasp)} for grasp in (first, second)]
    assert verdict(both(*tops, model="resnet56", reading="@run"), "GraSP loses to SNIP in most cases") == answer


def losing(bases, count, ratios):
    """Of these methods `count` cells below Random's 30 percent, the others at it, over the four networks."""
    frame = everywhere(FLAT | {"Random": 30.0}, ratios=ratios)
    rows = frame.index[frame["base"].isin(bases)]
    frame.loc[rows, "top1"] = 30.0
    frame.loc[rows[:count], "top1"] = 20.0
    return frame


@pytest.mark.parametrize("losers, lost, answer", [(6, 8, "disagrees"), (7, 5, "agrees"), (12, 4, "disagrees")])
def test_most_lose_is_more_than_half_of_the_methods_in_more_than_half_of_their_cases(losers, lost, answer):
    frame = everywhere(FLAT | {"Random": 30.0})
    frame["top1"] = 30.0    # a tie is no loss
    for base in tables.THESIS[:losers]:
        frame.loc[frame.index[frame["base"] == base][:lost], "top1"] = 20.0
    often = losers if lost > 4 else 0
    assert obtained(frame, "Most methods lose") == (
        f"{often} of 12 methods lose more often than not; Random wins {losers * lost} of 96 comparisons")
    assert published(frame, "Most methods lose") == answer


def test_comparisons_of_two_networks_at_chance_are_told():
    frame = made(FLAT | {"SNIP": (1, 30), "Random": (1, 40)}, dataset="cifar100")
    frame = pd.concat([frame, made(FLAT | {"SNIP": 1, "Random": 50}, "resnet56", "cifar100")], ignore_index=True)
    told = "Random wins 3 of 4 comparisons; in 1 both networks are at chance"
    assert obtained(frame, "even SNIP is surpassed") == told and published(frame, "even SNIP is surpassed") == "agrees"


@pytest.mark.parametrize("first, second, answer", [
    ("LAMP", "LayerGrad", "agrees"), ("LayerGrad", "LAMP", "disagrees"), ("LAMP", "SNIP", "disagrees")])
def test_only_layergrad_comes_near_is_that_it_is_second_to_lamp(first, second, answer):
    frame = made(FLAT | {first: 60, second: 50}, dataset="cifar100")
    assert published(frame, "only LayerGrad comes near") == answer


def test_ratios_beyond_the_thesis_are_not_asked():
    frame = closed(both(FLAT, ratios=(32, 64, 128)), LayerMag=128, GlobalMag=64)
    assert published(frame, "layer-wise ones survive") == "agrees"


@pytest.mark.parametrize("count, answer", [(32, "disagrees"), (33, "agrees")])
def test_rarely_is_less_than_a_third(count, answer):
    frame = losing(("GlobalMag", "GlobalLAP", "LayerMag", "LayerLAP"), count, (16, 32, 64))
    assert published(frame, "rarely beat random") == answer
