//! Reads the convolution and the array addresses of a call from XLA's frame.

use std::ffi::{c_int, c_void};
use std::slice;

use anyhow::{Result, bail, ensure};

use super::ffi;
use super::library::{ElementType, Window};
use super::plan::{Address, Addresses, Conv};

/// Returns the convolution and the addresses of its arrays. The frame's arguments are image and cotangent, its result is the
/// gradient, and its attribute is the convolution's window as eight integers.
///
/// # Safety
/// The frame comes from XLA and belongs to a call that has not returned.
pub unsafe fn read(frame: &ffi::CallFrame) -> Result<(Conv, Addresses)> {
    let (args, rets, attrs) = (&frame.args, &frame.rets, &frame.attrs);
    ensure!(
        (args.size, rets.size, attrs.size) == (2, 1, 1),
        "expected two operands, one result and a window"
    );
    // SAFETY: the frame has as many types and pointers as its sizes say, and a pointer of type buffer points to a buffer.
    let ((image, image_type), (cotangent, cotangent_type), (gradient, gradient_type)) = unsafe {
        (
            buffer(args.types, args.args, 0)?,
            buffer(args.types, args.args, 1)?,
            buffer(rets.types, rets.rets, 0)?,
        )
    };
    ensure!(
        image_type == cotangent_type && gradient_type == ffi::F32,
        "expected operands of one type and a result in f32"
    );
    let element = match image_type {
        ffi::F32 => ElementType::F32,
        ffi::BF16 => ElementType::Bf16,
        other => bail!("operands of XLA's element type {other} are not supported"),
    };
    // SAFETY: as above.
    ensure!(unsafe { *attrs.types } == ffi::ARRAY, "the window is not an array");
    // SAFETY: an attribute of this type is an array.
    let window = unsafe { &*(*attrs.attrs).cast::<ffi::Array>() };
    ensure!(window.dtype == ffi::S64 && window.size == 8, "the window is not an array of eight integers");
    // SAFETY: its size and type were checked above.
    let window = unsafe { slice::from_raw_parts(window.data.cast::<i64>(), 8) };
    let [stride, dilation, before, after] = [0, 2, 4, 6].map(|i| [window[i], window[i + 1]]);
    let conv = Conv {
        element,
        image: image.1,
        result: cotangent.1,
        kernel: [gradient.1[0], gradient.1[1]],
        window: Window { stride, dilation, before, after },
    };
    ensure!(
        gradient.1[2..] == [image.1[3], cotangent.1[3]] && image.1[0] == cotangent.1[0],
        "the sizes of image, cotangent and gradient do not agree"
    );
    let [image, cotangent, gradient] = [image.0, cotangent.0, gradient.0].map(Address);
    Ok((conv, Addresses { image, cotangent, gradient }))
}

/// Returns the address, the sizes and the element type of argument or result `index`, an array of four dimensions.
///
/// # Safety
/// There are more than `index` types and pointers, and a pointer of type buffer points to a buffer.
unsafe fn buffer(
    types: *const c_int,
    pointers: *const *const c_void,
    index: usize,
) -> Result<((*mut c_void, [i64; 4]), c_int)> {
    // SAFETY: the caller's promise.
    ensure!(unsafe { *types.add(index) } == ffi::BUFFER, "an operand or result is not a buffer");
    // SAFETY: as above.
    let buffer = unsafe { &*(*pointers.add(index)).cast::<ffi::Buffer>() };
    ensure!(buffer.rank == 4, "expected four dimensions, got {}", buffer.rank);
    // SAFETY: a buffer has as many sizes as its rank.
    let dims = unsafe { *buffer.dims.cast::<[i64; 4]>() };
    Ok(((buffer.data, dims), buffer.dtype))
}
