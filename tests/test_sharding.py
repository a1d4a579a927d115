"""Sharded parameters in one process: what is refused, in which words, and that nothing changed."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import padst_fx
from padst_fx import DST
from padst_fx.dst import agreement
from padst_fx.sharding import whole, whole_tensors


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def model(permutation="random", structure="diag"):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    return padst_fx.sparsify(dense, structure, 0.75, permutation=permutation, include=["0", "2"])


def manager(net, method="rigl"):
    return DST(net, torch.optim.SGD(net.parameters(), 0.1), method)


def test_whole_tensors_are_changed_in_the_storage_of_their_parts(mesh):
    plain = torch.arange(6.0)
    sharded = distribute_tensor(torch.arange(6.0).view(3, 2), mesh, [Shard(0)])
    address = sharded.to_local().data_ptr()
    with whole_tensors([plain, sharded]) as [first, second]:
        assert first is plain
        second.copy_(second.flip(0))
    assert torch.equal(whole(sharded), torch.arange(6.0).view(3, 2).flip(0))
    assert sharded.to_local().data_ptr() == address
    assert whole(plain) is plain


@pytest.mark.parametrize(
    "split",
    [
        lambda net, mesh: parallelize_module(net, mesh, {"0": ColwiseParallel()}),
        lambda net, mesh: distribute_module(net, mesh),
        lambda net, mesh: net[0].register_parameter(
            "values", nn.Parameter(distribute_tensor(net[0].values.detach(), mesh, [Shard(0)]))
        ),
    ],
    ids=["colwise", "distribute_module", "by hand"],
)
def test_tensor_parallelism_of_sparse_layers_is_refused(mesh, split):
    net = model()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises((ValueError, NotImplementedError), match=r"not supported|only support nn"):
        split(net, mesh)
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())


def test_values_split_without_fully_shard_are_refused_by_dst(mesh):
    net = model()
    values = nn.Parameter(distribute_tensor(net[2].values.detach(), mesh, [Replicate()]))
    net[2]._parameters["values"] = values
    with pytest.raises(ValueError, match=r"2\.values is .*tensor parallelism.*fully_shard alone"):
        manager(net)


def test_dense_layers_that_are_split_already_are_not_sparsified(mesh):
    dense = fully_shard(nn.Sequential(nn.Linear(16, 32)), mesh=mesh)
    with pytest.raises(ValueError, match="0: its weight is a DTensor, not a plain tensor"):
        padst_fx.sparsify(dense, "diag", 0.75)


@pytest.mark.parametrize("parameter", ["soft_perm", "alpha"])
def test_parameters_that_dst_keeps_whole_must_be_left_out(mesh, parameter):
    net = model("soft" if parameter == "soft_perm" else "random")
    if parameter == "alpha":
        net[0].enable_scores()
    names = {id(p): n for n, p in net.named_parameters()}
    left_out = padst_fx.replicated_parameters(net)
    assert {names[id(p)] for p in left_out} <= {"0.soft_perm", "2.soft_perm", "0.alpha"}
    sharded = fully_shard(copy.deepcopy(net), mesh=mesh)
    with pytest.raises(ValueError, match=rf"0\.{parameter} is sharded.*ignored_params=padst_fx"):
        manager(sharded, "dynadiag")
    manager(fully_shard(net, mesh=mesh, ignored_params=left_out), "dynadiag")


def test_a_sharded_model_is_not_saved_as_one_file(mesh, tmp_path):
    net = fully_shard(model(), mesh=mesh)
    with pytest.raises(ValueError, match=r"0\.values is sharded.*save_sharded"):
        padst_fx.save(net, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_optimizer_of_parameters_that_are_no_longer_there_is_refused(mesh):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    dst = DST(net, optimizer, "set")
    fully_shard(net, mesh=mesh)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    with pytest.raises(ValueError, match="the optimizer does not hold the sparse values of 0, 2"):
        dst.step()


def test_a_digest_tells_any_two_topologies_apart():
    layer = model("learned", padst_fx.Unstructured())[0]
    digests = {int(agreement.topology_digest(layer))}
    for _ in range(200):
        pair = torch.randperm(16)[:2]
        layer.perm[pair] = layer.perm[pair.flip(0)].clone()
        digests.add(int(agreement.topology_digest(layer)))
    for place in range(200):
        layer.index.view(-1)[place] ^= True
        digests.add(int(agreement.topology_digest(layer)))
        layer.index.view(-1)[place] ^= True
    assert len(digests) > 390


NAMES = ["first", "second"]


def test_ranks_that_differ_are_told_in_what(caplog):
    alike = [3, 10, 20, 1, 2]
    with pytest.raises(RuntimeError, match="rank 1 is at step 4, rank 0 at step 3"):
        agreement._compare(NAMES, 1, [4, *alike[1:]], alike)
    with pytest.raises(RuntimeError, match=r"step 3: rank 2 has other .* rank 0 in second\. "):
        agreement._compare(NAMES, 2, [3, 10, 21, 1, 2], alike)
    with caplog.at_level(logging.WARNING):
        agreement._compare(NAMES, 1, [3, 10, 20, 5, 2], alike)
    assert "rank 1 has other values than rank 0 in first; is every gradient" in caplog.text
