//! What a call asks for, read from XLA's frame.

use std::ffi::{c_int, c_void};
use std::slice;

use anyhow::{Result, bail, ensure};

use super::ffi;
use super::library::{Moves, Number};
use super::plan::{Address, Addresses, Conv};

/// What a frame asks for: image and cotangent are its arguments, the gradient is its result, and the convolution's window
/// an array of its own.
///
/// # Safety
/// The frame is one of XLA's, for a call that has not returned.
pub unsafe fn read(frame: &ffi::CallFrame) -> Result<(Conv, Addresses)> {
    let (args, rets, attrs) = (&frame.args, &frame.rets, &frame.attrs);
    ensure!(
        (args.size, rets.size, attrs.size) == (2, 1, 1),
        "two operands, one result and a window expected"
    );
    // SAFETY: there are as many types and pointers as the frame says, and those of buffers point to such.
    let ((image, image_type), (cotangent, cotangent_type), (gradient, gradient_type)) = unsafe {
        (
            buffer(args.types, args.args, 0)?,
            buffer(args.types, args.args, 1)?,
            buffer(rets.types, rets.rets, 0)?,
        )
    };
    ensure!(
        image_type == cotangent_type && gradient_type == ffi::F32,
        "operands of one type, a result in f32"
    );
    let number = match image_type {
        ffi::F32 => Number::F32,
        ffi::BF16 => Number::Bf16,
        other => bail!("operands of type {other}"),
    };
    // SAFETY: as above.
    ensure!(unsafe { *attrs.types } == ffi::ARRAY, "the window is no array");
    // SAFETY: an attribute of this type is an array.
    let window = unsafe { &*(*attrs.attrs).cast::<ffi::Array>() };
    ensure!(window.dtype == ffi::S64 && window.size == 8, "the window is no array of eight numbers");
    // SAFETY: it holds as many numbers of this type.
    let window = unsafe { slice::from_raw_parts(window.data.cast::<i64>(), 8) };
    let [stride, dilation, before, after] = [0, 2, 4, 6].map(|at| [window[at], window[at + 1]]);
    let conv = Conv {
        number,
        image: image.1,
        result: cotangent.1,
        kernel: [gradient.1[0], gradient.1[1]],
        moves: Moves { stride, dilation, before, after },
    };
    ensure!(
        gradient.1[2..] == [image.1[3], cotangent.1[3]] && image.1[0] == cotangent.1[0],
        "sizes do not agree"
    );
    let [image, cotangent, gradient] = [image.0, cotangent.0, gradient.0].map(Address);
    Ok((conv, Addresses { image, cotangent, gradient }))
}

/// Address, size and type of an array of four dimensions.
///
/// # Safety
/// There are more than `at` types and pointers, and a pointer of the right type is to a buffer.
unsafe fn buffer(
    types: *const c_int,
    pointers: *const *const c_void,
    at: usize,
) -> Result<((*mut c_void, [i64; 4]), c_int)> {
    // SAFETY: the caller's promise.
    ensure!(unsafe { *types.add(at) } == ffi::BUFFER, "an operand that is no buffer");
    // SAFETY: as above.
    let buffer = unsafe { &*(*pointers.add(at)).cast::<ffi::Buffer>() };
    ensure!(buffer.rank == 4, "an array of {} dimensions", buffer.rank);
    // SAFETY: a buffer has as many sizes as its rank says.
    let dims = unsafe { *buffer.dims.cast::<[i64; 4]>() };
    Ok(((buffer.data, dims), buffer.dtype))
}
