"""Bytes to and from a TPU's memory, read from the text of a compiled program."""

from conftest import load_script

PROGRAM = """HloModule jit_program

%body (p: f32[8]) -> f32[8] {
  ROOT %inside = f32[1024]{0:T(1024)} add(%p, %p)
}

ENTRY %main (a: f32[8,128], b: bf16[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0), metadata={op_name="a"}
  %b = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(1)
  %start = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%b)
  %there = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%start)
  %part = ((f32[8,128]{1,0:T(8,128)}), f32[2,128]{1,0:T(2,128)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:2]}
  %sliced = f32[2,128]{1,0:T(2,128)S(1)} slice-done(%part)
  %both = (f32[8,128]{1,0:T(8,128)}, f32[8]{0:T(128)S(1)}) fusion(%a, %there, %sliced), kind=kLoop, calls=%body
  %one = f32[8,128]{1,0:T(8,128)} get-tuple-element(%both), index=0
  ROOT %copy = f32[8,128]{1,0:T(8,128)} copy(%one)
}
"""
ARRAY = 4 * 8 * 128
memory_bytes = load_script('benchmarks/traffic.py').memory_bytes


def test_what_stays_on_the_chip_is_not_counted():
    fetched_ahead = ARRAY // 2 + ARRAY // 4  # b in bfloat16, two of eight rows of a
    fusion = 2 * ARRAY  # reads a, writes one of its two results to memory
    assert memory_bytes(PROGRAM) == fetched_ahead + fusion + 2 * ARRAY  # the copy reads and writes


def test_a_program_with_a_loop_has_no_count():
    assert memory_bytes(PROGRAM.replace('fusion(%a', 'while(%a')) is None
