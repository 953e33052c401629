"""The text of a C library's header."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.codegen.c_library.interface import ALIGNMENT, DTYPES, Interface, Tensor

_ERRORS = (
    ("ARGUMENT", "an argument, or the address of a tensor, is NULL"),
    ("THREADS", "more threads than it was compiled for, or fewer than 0"),
    ("ALIGNMENT", "the workspace is not aligned"),
    ("WORKSPACE", "the workspace is too small"),
    ("PROCESSOR", "the processor lacks instructions that the program uses"),
    ("MEMORY", "there is no memory for the workspace"),
    ("SYSTEM", "the system starts no more threads"),
    ("NO_WEIGHTS", "the weights file cannot be opened or mapped"),
    ("WEIGHTS", "the weights file is truncated, altered or of another model"),
    ("OVERLAP", "two outputs share memory"),
    ("BUSY", "this program is running in another thread"),
)

_BODY = """\
/* {name}.h: {title}

   Made by graphopt {version} for {target}.

     {name}_program *program;
     int error = {name}_init(&program, NULL);
     if (!error) {{
       {name}_inputs inputs = {{{input_example}}};
       {name}_outputs outputs = {{{output_example}}};
       error = {name}_run(program, &inputs, &outputs);
       {name}_free(program);
     }}
     if (error) fprintf(stderr, "%s\\n", {name}_strerror(error));

   Any number of programs may exist and run at once, each in one thread at a time and in the
   process that made it. */

#ifndef {NAME}_H
#define {NAME}_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

/* Memory that one program needs, all told, and its alignment, in bytes. */
#define {NAME}_WORKSPACE_BYTES {workspace}
#define {NAME}_WORKSPACE_ALIGNMENT {alignment}
/* Threads that can share one run. */
#define {NAME}_MAX_THREADS {threads}
{weights_macro}
/* Element types. Those that C lacks are held as bit patterns; narrow ones take a byte each. */
typedef enum {name}_dtype {{
{dtypes}
}} {name}_dtype;

typedef struct {name}_tensor {{
  const char *name; /* as in the ONNX model, UTF-8 */
  {name}_dtype dtype;
  int32_t rank;
  const int64_t *shape; /* [rank]; NULL if the rank is 0 */
  size_t elements, bytes;
}} {name}_tensor;

{tensors}
/* Row-major, of any alignment. An output may overlap inputs, no other output. */
typedef struct {name}_inputs {{
{input_members}
}} {name}_inputs;

typedef struct {name}_outputs {{
{output_members}
}} {name}_outputs;

typedef enum {name}_error {{
  {NAME}_OK = 0,
{errors}
}} {name}_error;

typedef struct {name}_program {name}_program;

/* Zeros stand for the defaults. */
typedef struct {name}_options {{
  int32_t threads; /* that share each run, the caller's included; 0: 1 */
  void *workspace; /* the caller's, in use until {name}_free; NULL: allocated */
  size_t workspace_bytes;
{weights_option}}} {name}_options;

/* Makes a program; `options` {options_note}. Gives {NAME}_OK, or an error's number and
   sets *program to NULL. */
int {name}_init({name}_program **program, const {name}_options *options);

/* Runs the program once. */
int {name}_run({name}_program *program, const {name}_inputs *inputs,
{padding}const {name}_outputs *outputs);

/* Stops its threads and gives its memory back, unless it is the caller's. NULL is allowed. */
void {name}_free({name}_program *program);

/* What the number of an error means. */
const char *{name}_strerror(int error);

/* The tensor with this index, {NAME}_INPUT_… or {NAME}_OUTPUT_…; NULL if there is none. */
const {name}_tensor *{name}_input(int32_t index);
const {name}_tensor *{name}_output(int32_t index);

#ifdef __cplusplus
}}
#endif

#endif
"""


def header(
    interface: Interface, title: str, target: str, version: str, weights_in_file: bool
) -> str:
    """The header's text.

    Args:
        title: one line about the model.
        target, version: what it was compiled for, and by which graphopt.
        weights_in_file: the weights are not in the library.
    """
    name, capitals = interface.name, interface.name.upper()
    weights_macro = weights_option = ""
    options_note = "may be NULL"
    if weights_in_file:
        weights_macro = (
            f"/* Size of the weights file, in bytes. */\n"
            f"#define {capitals}_WEIGHTS_BYTES {interface.weight_bytes}\n"
        )
        weights_option = (
            f"  const char *weights_path; /* {name}.weights; mapped read-only, and checked */\n"
        )
        options_note = "must name the weights file"
    return _BODY.format(
        name=name,
        NAME=capitals,
        title=_comment(title),
        target=_comment(target),
        version=version,
        workspace=interface.workspace_bytes,
        alignment=ALIGNMENT,
        threads=interface.threads,
        weights_macro=weights_macro,
        weights_option=weights_option,
        options_note=options_note,
        dtypes=_enumeration([(f"{capitals}_{dtype.upper()}", "") for dtype in DTYPES]),
        tensors=_macros(capitals, "INPUT", interface.inputs)
        + "\n"
        + _macros(capitals, "OUTPUT", interface.outputs),
        input_members=_members(interface.inputs, "const "),
        output_members=_members(interface.outputs, ""),
        input_example=", ".join(tensor.member for tensor in interface.inputs) or "0",
        output_example=", ".join(tensor.member for tensor in interface.outputs),
        errors=_enumeration(
            [(f"{capitals}_ERROR_{error}", f" /* {meaning} */") for error, meaning in _ERRORS]
        ),
        padding=" " * (len(name) + len("int _run(")),
    )


def string(text: str) -> str:
    """`text` as a C string literal, in UTF-8."""
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}"
        for byte in text.encode("utf-8", "surrogateescape")
    )
    return f'"{escaped}"'


def _macros(capitals: str, kind: str, tensors: tuple[Tensor, ...]) -> str:
    text = f"#define {capitals}_{kind}S {len(tensors)}\n"
    for index, tensor in enumerate(tensors):
        prefix = f"{capitals}_{kind}_{tensor.member.upper()}"
        text += f"\n/* {_comment(tensor.name)}: {tensor.dtype}{list(tensor.shape)} */\n"
        text += f"#define {prefix} {index}\n"
        text += f"#define {prefix}_RANK {len(tensor.shape)}\n"
        if tensor.shape:
            text += f"#define {prefix}_SHAPE {{{', '.join(map(str, tensor.shape))}}}\n"
        text += f"#define {prefix}_ELEMENTS {tensor.elements}\n"
        text += f"#define {prefix}_BYTES {tensor.nbytes}\n"
    return text


def _members(tensors: tuple[Tensor, ...], qualifier: str) -> str:
    return (
        "\n".join(
            f"  {qualifier}{tensor.c_type} *{tensor.member};"
            f" /* {tensor.dtype}{list(tensor.shape)} */"
            for tensor in tensors
        )
        or "  const void *none; /* a struct needs a member */"
    )


def _enumeration(items: Sequence[tuple[str, str]]) -> str:
    """Names with what stands behind them; C++98 allows no comma behind the last."""
    lines = [f"  {name},{remark}" for name, remark in items[:-1]]
    name, remark = items[-1]
    return "\n".join([*lines, f"  {name}{remark}"])


def _comment(text: str) -> str:
    """`text` in one line that cannot end a comment, begin one, or hold a trigraph."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?")
