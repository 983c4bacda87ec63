# ruff: noqa: E501 (a program's lines are long)
"""What a program does, read from its text: against programs whose work is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokvid.plan.hlo import groups_of, parse, shapes_of
from tokvid.plan.work import work


def compiled(function, *shapes):
    """The text of a program for this machine."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_a_multiplication_in_two_loops_counts_in_every_round():
    def scanned(x, weights):
        def outer(x, _):
            return jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, weights)[0], None

        return jax.lax.scan(outer, x, length=3)[0]

    found = work(compiled(scanned, (64, 128), (5, 128, 128)), 1)
    assert found.flops == 3 * 5 * 2 * 64 * 128 * 128
    assert found.collectives == ()
    # Each round reads one of the five weights, not all of them.
    assert 15 * 4 * 128 * 128 < found.bytes < 4 * 15 * 4 * 128 * (128 + 64)


def test_a_loop_whose_length_is_data_runs_as_often_as_said():
    text = compiled(lambda x, n: jax.lax.fori_loop(0, n.astype(int), lambda _, x: x @ x, x), (64, 64), ())
    assert work(text, 1).flops == 2 * 64**3
    assert work(text, 1, trips=(7,)).flops == 7 * 2 * 64**3


def test_of_a_conditional_the_first_branch_counts():
    def chosen(x, known):
        return jax.lax.cond(known > 0, lambda: (x @ x @ x)[:8], lambda: x[:8] @ x @ x)

    def chosen_more(x, known):
        return jax.lax.switch(known.astype(int), [lambda: x, lambda: x @ x, lambda: x @ x @ x])

    one, other = (compiled(each, (64, 64), ()) for each in (chosen, chosen_more))
    assert work(one, 1).flops == 2 * 2 * 8 * 64 * 64 and work(other, 1).flops == 0


# As compilers for TPU write it: layouts with tiles and memory spaces, products as convolutions, fused collectives.
TPU = """HloModule jit_step, is_scheduled=true

%add.clone (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[]{:T(256)} parameter(0)
  %y = bf16[]{:T(256)} parameter(1)
  ROOT %add.1 = bf16[]{:T(256)} add(%x, %y)
}

%all-reduce-scatter.1 (input.1: bf16[64,128]) -> bf16[16,128] {
  %input.1 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = bf16[64,128]{1,0:T(8,128)(2,1)} all-reduce(%input.1), channel_id=3, replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=%add.clone, metadata={op_name="jit(step)/dot_general"}
  %partition-id.1 = u32[] partition-id()
  %constant.1 = u32[] constant(0)
  ROOT %dynamic-slice.1 = bf16[16,128]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.1, %partition-id.1, %constant.1), dynamic_slice_sizes={16,128}
}

%fused_computation.1 (param_0: bf16[4,128,256], param_1: s32[], param_2: bf16[64,128]) -> bf16[64,256] {
  %param_2 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(2)
  %param_0 = bf16[4,128,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %constant.2 = s32[]{:T(128)} constant(0)
  %dynamic-slice.2 = bf16[1,128,256]{2,1,0:T(8,128)(2,1)} dynamic-slice(%param_0, %param_1, %constant.2, %constant.2), dynamic_slice_sizes={1,128,256}
  %bitcast.1 = bf16[128,256]{1,0:T(8,128)(2,1)} bitcast(%dynamic-slice.2)
  ROOT %convolution.1 = bf16[64,256]{1,0:T(8,128)(2,1)S(1)} convolution(%param_2, %bitcast.1), dim_labels=bf_io->bf
}

%body.1 (carry.1: (s32[], bf16[64,128], bf16[4,128,256])) -> (s32[], bf16[64,128], bf16[4,128,256]) {
  %carry.1 = (s32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}, /*index=2*/bf16[4,128,256]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %number = s32[]{:T(128)S(6)} get-tuple-element(%carry.1), index=0
  %x.1 = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%carry.1), index=1
  %weights = bf16[4,128,256]{2,1,0:T(8,128)(2,1)} get-tuple-element(%carry.1), index=2
  %fusion.1 = bf16[64,256]{1,0:T(8,128)(2,1)S(1)} fusion(%weights, %number, %x.1), kind=kOutput, calls=%fused_computation.1, backend_config={"flag_configs":[]}
  %fusion.2 = bf16[16,128]{1,0:T(8,128)(2,1)} fusion(%x.1), kind=kCustom, calls=%all-reduce-scatter.1
  %all-gather.1 = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%fusion.2), channel_id=4, replica_groups=[1,4]<=[4], dimensions={0}, use_global_device_ids=true
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}, bf16[4,128,256]{2,1,0:T(8,128)(2,1)}) tuple(%number, %all-gather.1, %weights)
}

%condition.1 (carry.2: (s32[], bf16[64,128], bf16[4,128,256])) -> pred[] {
  %constant.3 = s32[]{:T(128)} constant(4)
  %carry.2 = (s32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}, bf16[4,128,256]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %number.2 = s32[]{:T(128)} get-tuple-element(%carry.2), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%number.2, %constant.3), direction=LT
}

ENTRY %main (param.0: bf16[64,128], param.1: bf16[4,128,256]) -> bf16[64,128] {
  %param.0 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %param.1 = bf16[4,128,256]{2,1,0:T(8,128)(2,1)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}, bf16[4,128,256]{2,1,0:T(8,128)(2,1)}) tuple(%zero, %param.0, %param.1)
  %while.1 = (s32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}, bf16[4,128,256]{2,1,0:T(8,128)(2,1)}) while(%start), condition=%condition.1, body=%body.1
  ROOT %x.2 = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=1
}
"""


def test_a_program_for_tpu():
    found, x = work(TPU, 4), 2 * 64 * 128
    assert found.flops == 4 * 2 * 64 * 128 * 256
    gathered, scattered = sorted(found.collectives, key=lambda each: each.kind)
    assert (scattered.kind, scattered.size, scattered.times) == ("reduce-scatter", x, 4)
    assert scattered.source == "jit(step)/dot_general"
    assert (gathered.kind, gathered.size, gathered.groups) == ("all-gather", x, ((0, 1, 2, 3),))
    assert gathered.sent == scattered.sent == 4 * x * 3 / 4
    # x and one of the weights are read, the product stays on the chip; then x is scattered, and gathered.
    assert found.bytes == 4 * (x + 2 * 128 * 256 + (x + x / 4) + (x / 4 + x))


def test_a_collective_beside_several_fused_instructions_is_one():
    text = """
%async_collective_fusion.1 (a: bf16[8,128]) -> bf16[8,512] {
  %a = bf16[8,128]{1,0} parameter(0)
  ROOT %g = bf16[8,512]{1,0} all-gather(%a), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={1}
}

%async_collective_fusion.2 (b: bf16[8,128]) -> bf16[8,512] {
  %b = bf16[8,128]{1,0} parameter(0)
  ROOT %h = bf16[8,512]{1,0} all-gather(%b), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={1}
}

ENTRY %main (x: bf16[8,128]) -> bf16[8,512] {
  %x = bf16[8,128]{1,0} parameter(0)
  %begun = bf16[8,512]{1,0} fusion(%x), kind=kCustom, calls=%async_collective_fusion.1
  ROOT %ended = bf16[8,512]{1,0} fusion(%x), kind=kCustom, calls=%async_collective_fusion.2
}
"""
    (found,) = work(text, 4).collectives
    assert found.size == 2 * 8 * 512


def test_slices_within_a_fusion_within_a_fusion():
    """Compilers for TPU fuse the cutting of a layer's weights, or the writing into its cache, with their product."""
    text = """
%cut (p.0: bf16[48,128,256], p.1: s32[]) -> bf16[128,256] {
  %p.0 = bf16[48,128,256]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = bf16[1,128,256]{2,1,0} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,128,256}
  ROOT %bitcast.1 = bf16[128,256]{1,0} bitcast(%slice)
}

%write (q.0: bf16[48,64,256], q.1: s32[], q.2: bf16[1,64,256]) -> bf16[48,64,256] {
  %q.0 = bf16[48,64,256]{2,1,0} parameter(0)
  %q.1 = s32[] parameter(1)
  %q.2 = bf16[1,64,256]{2,1,0} parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %update = bf16[48,64,256]{2,1,0} dynamic-update-slice(%q.0, %q.2, %q.1, %zero.1, %zero.1)
}

%both (r.0: bf16[48,128,256], r.1: s32[], r.2: bf16[64,128], r.3: bf16[48,64,256]) -> bf16[48,64,256] {
  %r.0 = bf16[48,128,256]{2,1,0} parameter(0)
  %r.1 = s32[] parameter(1)
  %r.2 = bf16[64,128]{1,0} parameter(2)
  %r.3 = bf16[48,64,256]{2,1,0} parameter(3)
  %weight = bf16[128,256]{1,0} fusion(%r.0, %r.1), kind=kLoop, calls=%cut
  %product = bf16[64,256]{1,0} convolution(%r.2, %weight), dim_labels=bf_io->bf
  %shaped = bf16[1,64,256]{2,1,0} bitcast(%product)
  ROOT %written = bf16[48,64,256]{2,1,0} fusion(%r.3, %r.1, %shaped), kind=kLoop, calls=%write
}

ENTRY %main (w: bf16[48,128,256], n: s32[], x: bf16[64,128], cache: bf16[48,64,256]) -> bf16[48,64,256] {
  %w = bf16[48,128,256]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %x = bf16[64,128]{1,0} parameter(2)
  %cache = bf16[48,64,256]{2,1,0} parameter(3)
  ROOT %made = bf16[48,64,256]{2,1,0} fusion(%w, %n, %x, %cache), kind=kOutput, calls=%both
}
"""
    number, weight, x, written = 4, 2 * 128 * 256, 2 * 64 * 128, 2 * 64 * 256
    assert work(text, 1).bytes == number + weight + x + written
    assert work(text, 1).flops == 2 * 64 * 128 * 256


def test_what_goes_to_other_slices():
    """As compilers for TPU write it: handed to the host. Each device exchanges with its like in the other slices."""
    text = """
ENTRY %main (x: f32[256,128], y: s32[8]) -> f32[256,128] {
  %x = f32[256,128]{1,0} parameter(0)
  %y = s32[8]{0} parameter(1)
  %before = token[] after-all()
  %sent.1 = (f32[256,128]{1,0}, u32[], token[]) send(%x, %before), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.7_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2,3}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent.2 = (s32[8]{0}, u32[], token[]) send(%y, %before), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="collective-permute.2_0",_xla_megascale_target={{100000->200000},{100003->200001}},_xla_megascale_transfer_type="ONE_TO_ONE"}
  %sent.3 = (s32[8]{0}, u32[], token[]) send(%y, %before), channel_id=5, is_host_transfer=true
  ROOT %sum = f32[256,128]{1,0} recv-done(%before), channel_id=3
}
"""
    reduced, permuted = work(text, 12).collectives
    assert (reduced.kind, reduced.network, reduced.groups, reduced.source) == (
        "all-reduce",
        True,
        ((1, 2, 3),),
        "all-reduce.7_0",
    )
    assert reduced.sent == pytest.approx(2 * 2 / 3 * 4 * 256 * 128)
    assert (permuted.kind, permuted.network, permuted.sent) == ("collective-permute", True, 32)


def test_a_batch_of_products_as_a_convolution():
    """The batch, 8, as a window that meets its own place only."""
    text = """
ENTRY %main (a: bf16[8,16,32], b: bf16[8,32,64]) -> bf16[8,16,64] {
  %a = bf16[8,16,32]{2,1,0} parameter(0)
  %b = bf16[8,32,64]{2,1,0} parameter(1)
  ROOT %c = bf16[8,16,64]{2,1,0} convolution(%a, %b), window={size=8 stride=7 pad=0_0 lhs_dilate=8}, dim_labels=0bf_0io->0bf
}
"""
    assert work(text, 1).flops == 8 * 2 * 16 * 32 * 64


def test_a_kernel_tells_its_flops():
    text = """
ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  ROOT %c = bf16[8,128]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"flops":"4096","transcendentals":"0","bytes_accessed":"100"}}}
}
"""
    assert work(text, 1).flops == 4096


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("replica_groups={{0,1},{2,3}}, x", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", ((0, 1), (2, 3))),
        ("source_target_pairs={{0,1},{1,2}}, x", ((0, 1), (1, 2))),
        ("replica_groups={}", ((0, 1, 2, 3),)),
    ],
)  # fmt: skip
def test_who_exchanges_with_whom(text, wanted):
    assert groups_of(text, 4) == wanted


def test_bytes_in_memory_are_of_whole_tiles():
    narrow, here, flag = shapes_of("(f32[8,3,64]{2,0,1:T(8,128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, pred[5]{0})")
    assert narrow.size == 4 * 8 * 3 * 64 and narrow.moved == 4 * 8 * 3 * 128
    assert here.size == 2048 and here.moved == 0  # not in HBM
    assert flag.moved == 5
    assert shapes_of("bf16[]{:T(256)}")[0].dims == ()


def test_every_line_of_a_program_is_read():
    text = compiled(lambda x: jnp.sort(x @ x, axis=0)[::-1] + jnp.cumsum(x, 1), (16, 16))
    computations, entry = parse(text)
    lines = [line for line in text.splitlines() if " = " in line and not line.startswith(("HloModule", "//"))]
    assert sum(map(len, computations.values())) == len(lines) and entry in computations
    assert np.isfinite(work(text, 1).bytes)
