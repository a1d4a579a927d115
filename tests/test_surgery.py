"""plan, sparsify, densify, summary: what is replaced, what is not, and what is refused."""

from __future__ import annotations

import copy
from fractions import Fraction
from types import MappingProxyType

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import padst_fx
from padst_fx import NM, Block, Diag, SparseLinear, Unstructured
from padst_fx.distribution import balance
from padst_fx.initialization import looks_fresh


class Model(nn.Module):
    """Two blocks, an embedding tied to the head, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 24)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24)) for _ in range(2)
        )
        self.odd = nn.Linear(24, 25)
        self.back = nn.Linear(25, 24)
        self.lm_head = nn.Linear(24, 20, bias=False)
        self.lm_head.weight = self.embed.weight
        self.classifier = nn.Linear(24, 10)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block(x)
        x = x + self.back(self.odd(x).relu())
        return self.lm_head(x), self.classifier(x)


def model() -> Model:
    torch.manual_seed(0)
    return Model()


TOKENS = torch.arange(12).view(2, 6)


def fingerprint(module):
    return {name: (type(m), id(m)) for name, m in module.named_modules()}


@pytest.mark.parametrize("example_inputs", [None, TOKENS])
def test_the_plan_says_why_everything_left_alone_stays_dense(example_inputs):
    plan = padst_fx.plan(model(), Block(8), 0.5, example_inputs=example_inputs, exclude="blocks.1*")
    reasons = {entry.projection.name: entry.reason for entry in plan}
    assert reasons["blocks.0.0"] is None and reasons["blocks.0.2"] is None
    assert reasons["blocks.1.0"] == "excluded"
    assert reasons["odd"] == "Block(size=8) does not divide out=25"
    assert "tied with embed.weight" in reasons["lm_head"]
    assert "head" in reasons["classifier"]
    assert len(plan.replaced) == 2 and len(plan.skipped) == 6
    assert "2 of 8 projections become sparse" in str(plan)


def test_plan_changes_nothing_and_sparsify_does_what_it_says():
    m = model()
    before, state = fingerprint(m), copy.deepcopy(m.state_dict())
    plan = padst_fx.plan(m, "diag", 0.9)
    assert fingerprint(m) == before
    assert all(torch.equal(t, state[n]) for n, t in m.state_dict().items())
    assert padst_fx.sparsify(m, "diag", 0.9) is m
    sparse = [n for n, layer in m.named_modules() if isinstance(layer, SparseLinear)]
    assert sparse == [entry.projection.name for entry in plan.replaced]
    for entry in plan.replaced:
        assert m.get_submodule(entry.projection.name).pattern == entry.pattern
        assert m.get_submodule(entry.projection.name).role == entry.projection.role


@pytest.mark.parametrize(
    "structure", ["diag", Diag(width=8), Block(8), "nm", "2:4", Unstructured()], ids=str
)
@pytest.mark.parametrize("permutation", ["identity", "random"])
def test_densify_keeps_the_outputs_and_gives_back_the_classes(structure, permutation):
    m = model()
    classes = {name: type(module) for name, module in m.named_modules()}
    sparsity = 0.5 if structure == "2:4" else 0.9
    padst_fx.sparsify(m, structure, sparsity, permutation=permutation)
    sparse = m(TOKENS)
    padst_fx.densify(m)
    assert {name: type(module) for name, module in m.named_modules()} == classes
    for a, b in zip(m(TOKENS), sparse, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_densify_returns_a_lone_layer():
    layer = SparseLinear(8, 8, "diag", 0.5)
    dense = padst_fx.densify(layer)
    x = torch.randn(3, 8)
    torch.testing.assert_close(dense(x), layer(x))


def test_a_module_registered_twice_is_replaced_twice_by_one_layer():
    shared = nn.Linear(8, 8)
    m = nn.ModuleDict({"a": shared, "b": nn.ModuleDict({"c": shared}), "last": nn.Linear(8, 2)})
    padst_fx.sparsify(m, "diag", 0.5, include="a")
    assert isinstance(m["a"], SparseLinear) and m["b"]["c"] is m["a"]
    padst_fx.densify(m)
    assert type(m["a"]) is nn.Linear and m["b"]["c"] is m["a"]


def test_frozen_layers_stay_frozen_and_keep_dtype():
    m = model().to(torch.bfloat16)
    m.blocks.requires_grad_(False)
    padst_fx.sparsify(m, "diag", 0.9)
    layer = m.blocks[0][0]
    assert not layer.values.requires_grad and not layer.bias.requires_grad
    assert layer.values.dtype == layer.bias.dtype == torch.bfloat16
    assert m.odd.values.requires_grad


def test_a_permutation_for_each_layer():
    m = model()
    kinds = {"blocks.*": "learned", "blocks.1.0": "random", "odd": "soft"}
    plan = padst_fx.plan(m, "diag", 0.9, permutation=kinds)
    found = {entry.projection.name: entry.permutation for entry in plan.replaced}
    assert found == {
        "blocks.0.0": "learned", "blocks.0.2": "learned",
        "blocks.1.0": "random", "blocks.1.2": "learned", "odd": "soft",
        "back": "identity",
    }  # fmt: skip
    assert set(plan.permutations) == {"learned", "random", "soft", "identity"}
    assert any(line.split()[-1:] == ["soft"] for line in str(plan).splitlines())
    padst_fx.sparsify(m, "diag", 0.9, permutation={"odd": "random"})
    layers = {n: layer for n, layer in m.named_modules() if isinstance(layer, SparseLinear)}
    assert {n for n, layer in layers.items() if layer.perm.numel()} == {"odd"}
    assert layers["odd"].permutation == "random" and layers["blocks.0.0"].permutation == "identity"


@pytest.mark.parametrize(
    ("structure", "usual"),
    [("diag", "identity"), (Diag(run=2), "identity"), (Diag(width=8), "learned"),
     (Block(8), "learned"), (Block(1), "identity"), ("nm", "identity"),
     (Unstructured(), "identity")],
    ids=str,
)  # fmt: skip
def test_the_usual_permutation_is_learned_before_fresh_tiles_alone(structure, usual):
    m = model()
    fresh, kept = (padst_fx.plan(m, structure, 0.5, init=i) for i in ("random", "magnitude"))
    assert fresh.permutations == (usual,) and kept.permutations == ("identity",)
    padst_fx.sparsify(m, structure, 0.5, init="random")
    found = {layer.permutation for layer in m.modules() if isinstance(layer, SparseLinear)}
    assert found == {usual}


def test_a_search_is_for_learned_permutations_alone():
    m = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 2))
    plan = padst_fx.plan(m, "diag", 0.5, permutation={"0": "learned"}, init="magnitude")
    first, second = plan.replaced
    assert first.perm is not None and first.retained is not None
    assert second.perm is None and second.retained is None


def test_include_by_callable_and_exclude_by_glob():
    def wide(module, name):
        return getattr(module, "out_features", 0) == 48

    plan = padst_fx.plan(model(), "diag", 0.5, include=wide, exclude=["blocks.0.*"])
    assert [entry.projection.name for entry in plan.replaced] == ["blocks.1.0"]


def test_a_head_is_replaced_when_named():
    plan = padst_fx.plan(model(), "diag", 0.5, include=["classifier", "odd"])
    assert [entry.projection.name for entry in plan.replaced] == ["odd", "classifier"]
    plan = padst_fx.plan(model(), "diag", 0.5, include="*")
    assert "classifier" not in [entry.projection.name for entry in plan.replaced]


def test_distribution_by_mapping_and_callable():
    plan = padst_fx.plan(model(), "diag", 0.9, distribution={"blocks.0.*": 0.5, "odd": 0.0})
    got = {entry.projection.name: entry.pattern.sparsity for entry in plan.replaced}
    assert got["blocks.0.0"] == got["blocks.0.2"] == 0.5
    assert got["odd"] == 0.0
    assert got["blocks.1.0"] == pytest.approx(1 - 5 / 48)
    plan = padst_fx.plan(
        model(), "diag", 0.9, distribution=lambda p: 0.5 if p.role == "mlp_in" else 0.75
    )
    assert plan.entries[0].pattern.sparsity == 0.5
    assert plan.entries[1].pattern.sparsity == 0.75


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize(
    "structure", ["diag", Diag(run=2), Block(4), Unstructured(), "nm"], ids=str
)
def test_erk_meets_the_budget(structure, sparsity):
    torch.manual_seed(0)
    m = nn.Sequential(
        *(nn.Linear(i, o) for i, o in [(96, 96), (96, 384), (384, 96), (96, 48), (48, 96)]),
        nn.Linear(96, 4),
    )
    plan = padst_fx.plan(m, structure, sparsity, distribution="erk")
    patterns = [entry.pattern for entry in plan.replaced]
    weights = [p.out_features * p.in_features for p in patterns]
    budget = (1 - sparsity) * sum(weights)
    assert abs(sum(p.nonzeros for p in patterns) - budget) <= max(p.grain for p in patterns)
    shares = [
        (p.nonzeros / (p.out_features + p.in_features), p.grain / (p.out_features + p.in_features))
        for p, size in zip(patterns, weights, strict=True)
        if 1 < p.active < p.capacity
    ]
    for share, step in shares:
        for other, other_step in shares:
            assert abs(share - other) <= step + other_step


def test_auto_init_keeps_trained_weights_and_redraws_fresh_ones():
    m = model()
    assert all(looks_fresh(layer.weight) for block in m.blocks for layer in (block[0], block[2]))
    with torch.no_grad():
        m.blocks[1][0].weight *= torch.linspace(0.2, 3, 48)[:, None]
        m.blocks[1][2].weight *= torch.linspace(0.2, 3, 48)
    starts = {e.projection.name: e.init for e in padst_fx.plan(m, "diag", 0.5).replaced}
    assert starts["blocks.0.0"] == starts["blocks.0.2"] == "random"
    assert starts["blocks.1.0"] == starts["blocks.1.2"] == "magnitude"


@pytest.mark.parametrize("draw", [nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_])
def test_usual_initialisations_look_fresh(draw):
    torch.manual_seed(1)
    assert looks_fresh(draw(torch.empty(128, 64)) * 0.02)


def test_random_init_scales_to_the_real_fan_in():
    torch.manual_seed(0)
    layer = SparseLinear.from_dense(nn.Linear(256, 256), "diag", 0.9, init="random")
    fan_in = layer.pattern.nonzeros / 256
    expected = (1 / (3 * fan_in)) ** 0.5
    assert layer.values.std().item() == pytest.approx(expected, rel=0.02)


REFUSED = [
    (("diagonal", 0.9), {}, "unknown structure 'diagonal'; valid: 'diag', 'block', 'nm'"),
    (("diag", 1.0), {}, r"sparsity must be in \[0, 1\), got 1.0"),
    (("diag", 90), {}, r"sparsity must be in \[0, 1\), got 90"),
    (("diag", "0.9"), {}, "sparsity must be a number"),
    (("diag", None), {}, "sparsity must be a number"),
    (("diag", 0.9), {"permutation": "sorted"}, "unknown permutation 'sorted'; valid: 'identity'"),
    (("diag", 0.9), {"distribution": "er"}, "unknown distribution 'er'; valid: 'uniform', 'erk'"),
    (("diag", 0.9), {"distribution": {"odd": 1.5}}, r"odd: sparsity must be in \[0, 1\)"),
    (("diag", 0.9), {"init": "zeros"}, "unknown init 'zeros'; valid: 'auto', 'magnitude'"),
    ((Block(8), 0.9), {"include": "odd"}, r"odd: Block\(size=8\) does not divide out=25"),
    (("diag", 0.9), {"include": "lm_head"}, "lm_head was asked for by name.*tied with embed"),
    (("diag", 0.9), {"include": "class*"}, "nothing to sparsify: every projection stays dense"),
    (("diag", 0.9), {"include": "nowhere*"}, "include has 'nowhere.'.*no projection.*blocks.0.0"),
    (("diag", 0.9), {"exclude": ["odd", "bakc"]}, "exclude has 'bakc'.*and 3 more"),
    (("diag", 0.9), {"distribution": {"mlp": 0.5}}, "distribution has 'mlp'"),
    (("diag", 0.9), {"permutation": {"mlp": "soft"}}, "permutation has 'mlp'"),
    (("diag", 0.9), {"permutation": {"odd": "hard"}}, "unknown permutation 'hard'; valid: 'ident"),
    (("diag", 0.9), {"include": "odd", "exclude": "o*"}, "'odd' by name, but exclude has 'o.'"),
    (
        ("diag", 0.9),
        {"distribution": {"odd": 0.5}, "include": "blocks.*"},
        "distribution asks for 'odd' by name, but include leaves it out",
    ),
    (
        ("diag",),
        {"distribution": {"blocks.*": 0.5}, "include": ["odd", "blocks.*"]},
        "odd was asked for by name, but no key of distribution",
    ),
    (("diag", 0.999), {"distribution": "erk"}, "out of reach: one unit per layer makes"),
    (("2:4", 0.9), {}, r"NM\(2, 4\) is 0.5 sparse, but sparsity=0.9"),
    ((NM(2, 4), 0.5), {"distribution": "erk"}, "needs a free count"),
]


@pytest.mark.parametrize(("positional", "keywords", "message"), REFUSED)
def test_bad_input_is_refused_with_the_model_untouched(positional, keywords, message):
    m = model()
    before = fingerprint(m)
    state = copy.deepcopy(m.state_dict())
    with pytest.raises(ValueError, match=message):
        padst_fx.sparsify(m, *positional, **keywords)
    assert fingerprint(m) == before
    assert all(torch.equal(t, state[n]) for n, t in m.state_dict().items())


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_selectors_of_the_wrong_type(argument):
    with pytest.raises(TypeError, match=argument):
        padst_fx.sparsify(model(), "diag", 0.9, **{argument: 3})


def test_a_model_without_projections():
    with pytest.raises(ValueError, match="no linear or attention projection"):
        padst_fx.sparsify(nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()), "diag", 0.9)


def test_a_model_sparsified_already():
    m = padst_fx.sparsify(model(), "diag", 0.9)
    with pytest.raises(ValueError, match=r"already sparsified: blocks.0.0 is a SparseLinear"):
        padst_fx.sparsify(m, "diag", 0.9)


def test_a_model_that_is_itself_a_projection():
    with pytest.raises(ValueError, match=r"SparseLinear.from_dense"):
        padst_fx.sparsify(nn.Linear(8, 8), "diag", 0.5)


def test_nothing_to_densify_or_summarise():
    for function in (padst_fx.densify, padst_fx.summary):
        with pytest.raises(ValueError, match="no SparseLinear"):
            function(model())


def test_summary_counts_what_is_stored():
    m = padst_fx.sparsify(model(), "diag", 0.9, permutation="random")
    table = padst_fx.summary(m)
    row = table.rows[0]
    assert (row.name, row.role, row.shape) == ("blocks.0.0", "mlp_in", (48, 24))
    assert row.parameters == 5 * 24 + 48
    assert row.dense_parameters == 48 * 24 + 48
    assert (row.permutation, row.kernel) == ("random", "shift")
    assert table.model_parameters == sum(p.numel() for p in m.parameters())
    text = str(table)
    assert "blocks.0.0" in text and "shift" in text


def names(plan):
    return [entry.projection.name for entry in plan.replaced]


def attention_model():
    torch.manual_seed(0)
    return nn.ModuleDict({"attn": nn.MultiheadAttention(16, 4), "mlp": nn.Linear(16, 16)})


SLOTS = ["attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj"]


def test_an_attention_is_selected_by_its_own_name():
    m = attention_model()
    assert names(padst_fx.plan(m, "diag", 0.5, include=["attn"])) == SLOTS
    assert names(padst_fx.plan(m, "diag", 0.5, include="mlp", exclude="attn")) == ["mlp"]
    partly = padst_fx.plan(m, "diag", 0.5, include="attn", exclude="attn.k_proj")
    assert names(partly) == [SLOTS[0], *SLOTS[2:]]
    spread = {"attn": 0.75, "attn.q_proj": 0.5, "*": 0.0}
    plan = padst_fx.plan(m, "diag", distribution=spread)
    got = {entry.projection.name: entry.pattern.sparsity for entry in plan.replaced}
    assert {name: got[name] for name in SLOTS} == dict.fromkeys(SLOTS, 0.75) | {SLOTS[0]: 0.5}


def test_every_name_of_a_shared_module_counts():
    shared = nn.Linear(8, 8)
    m = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(8, 8), "d": nn.Linear(8, 2)})
    assert names(padst_fx.plan(m, "diag", 0.5, exclude=["b"])) == ["c"]
    assert names(padst_fx.plan(m, "diag", 0.5, include=["b"])) == ["a"]
    plan = padst_fx.plan(m, "diag", distribution={"b": 0.5})
    assert names(plan) == ["a"]


def test_names_come_before_globs():
    m = nn.ModuleDict({"a[0]": nn.Linear(8, 8), "a0": nn.Linear(8, 8), "z": nn.Linear(8, 2)})
    assert names(padst_fx.plan(m, "diag", 0.5, include="a[0]")) == ["a[0]"]
    plan = padst_fx.plan(m, "diag", distribution={"*": 0.75, "a0": 0.5}, exclude="z")
    assert {e.projection.name: e.pattern.sparsity for e in plan.replaced} == {
        "a[0]": 0.75,
        "a0": 0.5,
    }


@pytest.mark.parametrize("kind", [dict, MappingProxyType])
def test_a_mapping_without_a_sparsity_asks_for_its_names(kind):
    spread = kind({"classifier": 0.5, "blocks.0.*": numpy.float32(0.75), "lm_head": None})
    plan = padst_fx.plan(model(), "diag", distribution=spread)
    assert names(plan) == ["blocks.0.0", "blocks.0.2", "classifier"]
    reasons = {entry.projection.name: entry.reason for entry in plan.skipped}
    assert reasons["odd"] == "no key of distribution matches it, and sparsity is not given"


def test_a_callable_that_picks_nothing_is_no_typo():
    plan = padst_fx.plan(model(), "diag", 0.5, exclude=lambda module, name: False)
    assert len(plan.replaced) == 6


def test_tables_show_names_as_they_are():
    odd = ["[bold]x", ":smile:", "[/x]"]
    m = nn.ModuleDict({**{name: nn.Linear(8, 8) for name in odd}, "last": nn.Linear(8, 2)})
    texts = [str(padst_fx.plan(m, "diag", 0.5))]
    texts.append(str(padst_fx.summary(padst_fx.sparsify(m, "diag", 0.5))))
    assert all(name in text for name in odd for text in texts)


def test_the_summary_counts_scores():
    m = padst_fx.sparsify(model(), "diag", 0.9)
    m.blocks[0][0].enable_scores()
    assert padst_fx.summary(m).rows[0].parameters == 5 * 24 + 48 + 48


def test_only_auto_reads_weights_and_it_reads_each_projection_alone():
    m = attention_model()
    with torch.no_grad():
        m["attn"].in_proj_weight[16:32] *= torch.linspace(0.2, 3, 16)[:, None]
    starts = {e.projection.name: e.init for e in padst_fx.plan(m, "diag", 0.5).replaced}
    assert starts["attn.k_proj"] == "magnitude"
    assert starts["attn.q_proj"] == starts["attn.v_proj"] == "random"


def densified():
    layer = SparseLinear(128, 128, "diag", 0.9)
    nn.init.normal_(layer.values)
    return layer.dense_weight()


def with_one(value):
    weight = torch.randn(64, 64)
    weight[3, 4] = value
    return weight


NOT_FRESH = {
    "densified": densified,
    "identity": lambda: torch.eye(64),
    "permuted identity": lambda: torch.eye(64)[torch.randperm(64)],
    "nan": lambda: with_one(float("nan")),
    "infinite": lambda: with_one(float("inf")),
    "one zero in a hundred": lambda: torch.randn(64, 64) * (torch.rand(64, 64) > 0.01),
    "signs": lambda: torch.randn(64, 64).sign(),
    "quantised": lambda: (torch.randn(64, 64) * 20).round() + 0.5,
    "equal row norms": lambda: nn.functional.normalize(torch.randn(64, 64)),
    "equal column norms": lambda: nn.functional.normalize(torch.randn(64, 64), dim=0),
    "zeros": lambda: torch.zeros(64, 64),
    "constant": lambda: torch.ones(64, 64),
}


@pytest.mark.parametrize("weight", NOT_FRESH.values(), ids=NOT_FRESH)
def test_weights_that_are_no_plain_draw_are_kept(weight):
    torch.manual_seed(0)
    assert not looks_fresh(weight())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(4, 4), (3, 200), (200, 1), (64, 256), (512, 128)])
@pytest.mark.parametrize(
    "draw",
    [
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.trunc_normal_,
        nn.init.xavier_uniform_,
        nn.init.xavier_normal_,
        nn.init.kaiming_uniform_,
        nn.init.kaiming_normal_,
    ],
)
def test_fresh_draws_look_fresh(draw, shape, dtype):
    torch.manual_seed(2)
    assert all(looks_fresh(draw(torch.empty(shape, dtype=dtype))) for _ in range(10))


def test_one_coincidental_zero_and_meta_are_fresh():
    torch.manual_seed(0)
    assert looks_fresh(with_one(0.0))
    assert looks_fresh(torch.empty(8, 8, device="meta"))


LAYERS = st.lists(
    st.tuples(
        st.sampled_from([Diag(), Diag(width=4), Diag(run=2), Block(4), NM(1, 8), Unstructured()]),
        st.integers(1, 24).map(lambda k: 8 * k),
        st.integers(1, 24).map(lambda k: 8 * k),
        st.fractions(Fraction(1, 50), Fraction(1), max_denominator=50),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(LAYERS, st.fractions(0, 1))
def test_balance_meets_every_budget_within_reach(layers, at):
    patterns = [structure.pattern(o, i, 1) for structure, o, i, _ in layers]
    densities = [density for *_, density in layers]
    grains = [p.grain for p in patterns]
    least, most = sum(grains), sum(p.grain * p.capacity for p in patterns)
    budget = least + int(at * (most - least))
    balanced = balance(patterns, densities, budget)
    assert abs(sum(p.nonzeros for p in balanced) - budget) <= max(grains)
    lowest, highest = Fraction(0), None
    for pattern, density, grain in zip(balanced, densities, grains, strict=True):
        unit = density * pattern.out_features * pattern.in_features / grain
        if pattern.active > 1:
            lowest = max(lowest, (pattern.active - 1) / unit)
        if pattern.active < pattern.capacity:
            above = (pattern.active + 1) / unit
            highest = above if highest is None else min(highest, above)
    assert highest is None or lowest < highest  # one multiple explains every count
    for wrong in (least - max(grains) - 1, most + max(grains) + 1):
        with pytest.raises(ValueError, match=f"makes {least} and all of them {most}"):
            balance(patterns, densities, wrong)
