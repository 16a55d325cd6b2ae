"""Products of a matrix of bits with a matrix of floats, by tables of partial sums (the method of four Russians).

Units are bits, so y W is a sum of rows of W. Five inputs at a time, the 32 sums that their bits can choose are made
once and looked up for every row of y: one addition in place of five multiplications and additions. In float32 this
passes a core's matrix-product rate two to three times, and each sum is made in an order that depends on its place
alone, never on how many rows there are.
Suffixes: P products of one shape (those of a pack of machines), R rows of bits, C bits in a row, O columns of floats.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rws_ray.core.kernels.jit import compiled, inlined

GROUP = 5  # bits that choose one of a table's sums
TABLES = 8  # tables at a time: their codes fill one 64-bit word, the tables half of a first-level cache
BLOCK = GROUP * TABLES  # bits in a word
LANES = 16  # columns at a time
_SUMS = 1 << GROUP
_ROW = 4 * LANES  # bytes of one sum
_TABLE = _SUMS * _ROW
_TABLES_SIZE = TABLES * _SUMS * LANES
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_WORD = ir.IntType(64)
_SHIFTS = np.array([8 * (place // GROUP) + place % GROUP for place in range(BLOCK)], np.uint64)  # of a bit in its word


def _at(builder: Any, address: Any, alignment: int = 4) -> tuple[Any, Any]:
    pointer = builder.inttoptr(address, _VECTOR.as_pointer())
    return builder.load(pointer, align=alignment), pointer


def _prefetch(builder: Any, address: Any) -> None:
    """Have the line there come near: rows lie too far apart for the processor to foresee. Any address will do."""
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    flag = ir.IntType(32)
    function = builder.module.declare_intrinsic(
        "llvm.prefetch", [pointer.type], ir.FunctionType(ir.VoidType(), [pointer.type, flag, flag, flag])
    )
    builder.call(function, [pointer, *(ir.Constant(flag, value) for value in (0, 3, 1))])  # to read, keep, data


@intrinsic  # type: ignore[untyped-decorator]
def _make_table(typing: Any, table: Any, source: Any, stride: Any) -> Any:
    """All sums of subsets of GROUP rows, `stride` bytes apart from `source` on, LANES columns wide, by their code."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        table, source, stride = arguments
        sums = [ir.Constant(_VECTOR, [0.0] * LANES)]
        ahead = builder.mul(stride, ir.Constant(_WORD, BLOCK))  # where the same table's rows of the next block lie
        for _ in range(GROUP):
            row = _at(builder, source)[0]
            for end in (0, _ROW - 4):  # a row's lanes may lie on two lines
                _prefetch(builder, builder.add(source, builder.add(ahead, ir.Constant(_WORD, end))))
            sums += [row, *(builder.fadd(each, row) for each in sums[1:])]
            source = builder.add(source, stride)
        for place, each in enumerate(sums):
            address = builder.add(table, ir.Constant(_WORD, place * _ROW))
            builder.store(each, builder.inttoptr(address, _VECTOR.as_pointer()), align=64)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), code


@intrinsic  # type: ignore[untyped-decorator]
def _copy(typing: Any, target: Any, source: Any) -> Any:
    """LANES floats."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source = arguments
        builder.store(_at(builder, source)[0], builder.inttoptr(target, _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), code


def _look_up(num_tables: int) -> Any:
    """What adds to the LANES floats at `total` the sums that a word's first codes choose, one from each table."""

    @intrinsic  # type: ignore[untyped-decorator]
    def look_up(typing: Any, total: Any, tables: Any, word: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            total, tables, word = arguments
            sums = []
            for table in range(num_tables):
                shift = 8 * table - 6  # a code times the 64 bytes of a sum is its place in the table
                amount = ir.Constant(_WORD, abs(shift))
                moved = builder.lshr(word, amount) if shift > 0 else builder.shl(word, amount)
                place = builder.add(builder.and_(moved, ir.Constant(_WORD, (_SUMS - 1) << 6)), tables)
                address = builder.add(place, ir.Constant(_WORD, table * _TABLE))
                sums.append(_at(builder, address, 64)[0])
            while len(sums) > 1:
                sums = [functools.reduce(builder.fadd, sums[pair : pair + 2]) for pair in range(0, len(sums), 2)]
            old, pointer = _at(builder, total)
            builder.store(builder.fadd(old, sums[0]), pointer, align=4)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.uint64), code

    return look_up


_look_up_2, _look_up_4, _look_up_6, _look_up_8 = (_look_up(count) for count in (2, 4, 6, 8))


@compiled("boolean(float32[:, ::1], uint64[:, :, ::1])")
def pack_rows(y_RC, words_PBR):  # type: ignore[no-untyped-def]
    """Codes of each row, words (P, ⌈C / 40⌉, R / P) uint64; False where y holds anything but 0 and 1."""
    R, C = y_RC.shape
    strays = 0
    whole = C // BLOCK
    share = words_PBR.shape[2]
    for row in range(R):
        words, r = words_PBR[row // share], row % share
        for block in range(whole):
            word = np.uint64(0)
            first = block * BLOCK
            for place in range(BLOCK):
                value = y_RC[row, first + place]
                is_one = value == np.float32(1)
                strays += (value != np.float32(0)) & ~is_one
                word |= np.uint64(is_one) << _SHIFTS[place]
            words[block, r] = word
        if whole < words.shape[0]:
            word = np.uint64(0)
            for place in range(C - whole * BLOCK):
                value = y_RC[row, whole * BLOCK + place]
                is_one = value == np.float32(1)
                strays += (value != np.float32(0)) & ~is_one
                word |= np.uint64(is_one) << _SHIFTS[place]
            words[whole, r] = word
    return strays == 0


@compiled("boolean(float32[:, :, ::1], uint64[:, :, ::1])")
def pack_columns(y_PCR, words_PBR):  # type: ignore[no-untyped-def]
    """Codes of each column: the transpose's rows; words (P, ⌈C / 40⌉, R) uint64; False where y is not all bits."""
    P, C, R = y_PCR.shape
    stray = np.int32(0)
    words_PBR[:] = np.uint64(0)
    for p in range(P):
        y_CR, words = y_PCR[p], words_PBR[p]
        for c in range(C):
            block, place = c // BLOCK, c % BLOCK
            shift = np.uint64(8 * (place // GROUP) + place % GROUP)
            for r in range(R):
                value = y_CR[c, r]
                is_one = value == np.float32(1)
                stray |= np.int32((value != np.float32(0)) & ~is_one)
                words[block, r] |= np.uint64(is_one) << shift
    return stray == 0


@inlined
def _address(values):  # type: ignore[no-untyped-def]
    """Where an array begins, as a signed integer: unsigned ones and counters of loops would add up as floats."""
    return np.intp(values.ctypes.data)


@inlined
def _make_tables(f_CO, first, column, num_tables, tables, rows):  # type: ignore[no-untyped-def]
    """The tables of a block of rows of f, from `first` on, at LANES columns; what lies beyond f counts as zeros."""
    C, O = f_CO.shape
    for table in range(num_tables):
        c = first + table * GROUP
        source, stride = _address(f_CO) + (c * O + column) * 4, O * 4
        # Lanes beyond a row's end hold the next rows' floats, which nobody reads; beyond the last row there are none.
        if c + GROUP > C or (c + GROUP - 1) * O + column + LANES > C * O:
            rows[:] = np.float32(0)
            for bit in range(min(GROUP, C - c)):
                for lane in range(min(LANES, O - column)):
                    rows[bit * LANES + lane] = f_CO[c + bit, column + lane]
            source, stride = _address(rows), _ROW
        _make_table(_address(tables) + table * _TABLE, source, stride)


@inlined
def _add_sums(word_R, num_tables, tables, target, stride):  # type: ignore[no-untyped-def]
    """Add each row's chosen sums to the row of `target`, `stride` bytes from the one before."""
    if num_tables == TABLES:
        for r in range(len(word_R)):
            _look_up_8(target + r * stride, tables, word_R[r])
    elif num_tables == 6:
        for r in range(len(word_R)):
            _look_up_6(target + r * stride, tables, word_R[r])
    elif num_tables == 4:
        for r in range(len(word_R)):
            _look_up_4(target + r * stride, tables, word_R[r])
    else:
        for r in range(len(word_R)):
            _look_up_2(target + r * stride, tables, word_R[r])


@compiled("void(uint64[:, :, ::1], float32[:, :, :], float32[:, :], float32[:, :, :], boolean, float32[::1])")
def product(words_PBR, f_PCO, bias_PO, out_PRO, is_added, scratch):  # type: ignore[no-untyped-def]
    """out = bits · f + bias, or out += bits · f, for each p.

    Args:
        words_PBR: (P, ⌈C / 40⌉, R), of pack_rows or pack_columns.
        f_PCO: float32, each f contiguous; the P of them may lie apart.
        bias_PO: read only where nothing is added to.
        out_PRO: float32, each out contiguous.
        scratch: scratch_size(R) float32, on a 64-byte boundary.
    """
    P, blocks, R = words_PBR.shape
    O = f_PCO.shape[2]
    tables, rest = scratch[:_TABLES_SIZE], scratch[_TABLES_SIZE:]
    rows, totals = rest[: GROUP * LANES], rest[GROUP * LANES :]
    for p in range(P):
        f_CO, out_RO = f_PCO[p], out_PRO[p]
        for column in range(0, O, LANES):
            width = min(LANES, O - column)
            # Sums are made aside, on boundaries of whole vectors, where the output's rows do not lie on such.
            place, stride = _address(out_RO) + column * 4, O * 4
            is_aside = width < LANES or (place | stride) % _ROW != 0
            target, step = (_address(totals), _ROW) if is_aside else (place, stride)
            if width < LANES or not is_added:
                rows[:LANES] = np.float32(0)
                if not is_added:
                    rows[:width] = bias_PO[p, column : column + width]
                for r in range(R):
                    _copy(target + r * step, _address(rows))
            elif is_aside:
                for r in range(R):
                    _copy(target + r * step, place + r * stride)
            for block in range(blocks):
                # A last block of fewer bits takes fewer tables, an even number of them.
                num_tables = min(TABLES, -(-(f_PCO.shape[1] - block * BLOCK) // (2 * GROUP)) * 2)
                _make_tables(f_CO, block * BLOCK, column, num_tables, tables, rows)
                _add_sums(words_PBR[p, block], num_tables, _address(tables), target, step)
            if width < LANES:
                for r in range(R):
                    for lane in range(width):
                        before = out_RO[r, column + lane] if is_added else np.float32(0)
                        out_RO[r, column + lane] = before + totals[r * LANES + lane]
            elif is_aside:
                for r in range(R):
                    _copy(place + r * stride, target + r * step)


def scratch_size(rows: int) -> int:
    """Floats that a product of so many rows needs beside its operands."""
    return _TABLES_SIZE + (GROUP + rows) * LANES
