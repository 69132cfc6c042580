//! The part of XLA's C interface for custom calls that this program uses: `xla/ffi/api/c_api.h`, version 0.2.
//!
//! Names are those of the header without `XLA_FFI_`.

use std::ffi::{c_char, c_int, c_void};

use crate::engine::runtime::custom_call_header::{opaque, structs};

/// The API version (major, minor) that this file follows.
pub const VERSION: (c_int, c_int) = (0, 2);

opaque!(Error Context Future);

pub type Handler = unsafe extern "C" fn(*mut CallFrame) -> *mut Error;
pub type Task = unsafe extern "C" fn(*mut c_void);

/// A function of the table that takes one structure with its arguments.
type Function<A> = Option<unsafe extern "C" fn(*mut A) -> *mut Error>;

structs! {
    Api_Version {
        major_version: c_int,
        minor_version: c_int,
    }
    Error_Create_Args {
        message: *const c_char,
        errc: c_int,
    }
    Error_GetMessage_Args {
        error: *mut Error,
        message: *const c_char,
    }
    Error_Destroy_Args {
        error: *mut Error,
    }
    Buffer {
        dtype: c_int,
        data: *mut c_void,
        rank: i64,
        dims: *const i64,
    }
    Args {
        size: i64,
        types: *const c_int,
        args: *const *const c_void,
    }
    Rets {
        size: i64,
        types: *const c_int,
        rets: *const *const c_void,
    }
    Attrs {
        size: i64,
        types: *const c_int,
        names: *const *const ByteSpan,
        attrs: *const *const c_void,
    }
    CallFrame {
        api: *const Api,
        ctx: *mut Context,
        stage: c_int,
        args: Args,
        rets: Rets,
        attrs: Attrs,
        future: *mut Future,
    }
    Handler_Register_Args {
        name: ByteSpan,
        platform: ByteSpan,
        bundle: Handler_Bundle,
        traits: u32,
    }
    TypeInfo {
        deleter: Option<unsafe extern "C" fn(*mut c_void)>,
    }
    Type_Register_Args {
        name: ByteSpan,
        type_id: *mut TypeId,
        type_info: *const TypeInfo,
    }
    ExecutionContext_Get_Args {
        ctx: *mut Context,
        type_id: *mut TypeId,
        data: *mut c_void,
    }
    ThreadPool_Schedule_Args {
        ctx: *mut Context,
        task: Option<Task>,
        data: *mut c_void,
    }
    ThreadPool_NumThreads_Args {
        ctx: *mut Context,
        num_threads: *mut i64,
    }
    Api {
        api_version: Api_Version,
        internal_api: *const c_void,
        XLA_FFI_Error_Create: Function<Error_Create_Args>,
        XLA_FFI_Error_GetMessage: Option<unsafe extern "C" fn(*mut Error_GetMessage_Args)>,
        XLA_FFI_Error_Destroy: Option<unsafe extern "C" fn(*mut Error_Destroy_Args)>,
        XLA_FFI_Handler_Register: Function<Handler_Register_Args>,
        stream_get: *const c_void,
        XLA_FFI_Type_Register: Function<Type_Register_Args>,
        XLA_FFI_ExecutionContext_Get: Function<ExecutionContext_Get_Args>,
        not_used: [*const c_void; 4],
        XLA_FFI_ThreadPool_Schedule: Function<ThreadPool_Schedule_Args>,
        XLA_FFI_ThreadPool_NumThreads: Function<ThreadPool_NumThreads_Args>,
    }
}

#[repr(C)]
pub struct ByteSpan {
    pub ptr: *const c_char,
    pub len: usize,
}

/// The id that XLA assigns to a type that a custom call registers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TypeId {
    pub type_id: i64,
}

#[repr(C)]
pub struct Array {
    pub dtype: c_int,
    pub size: usize,
    pub data: *const c_void,
}

#[repr(C)]
pub struct Handler_Bundle {
    pub instantiate: Option<Handler>,
    pub prepare: Option<Handler>,
    pub initialize: Option<Handler>,
    pub execute: Option<Handler>,
}

#[repr(C)]
pub struct Extension_Base {
    pub struct_size: usize,
    pub r#type: c_int,
    pub next: *mut Extension_Base,
}

#[repr(C)]
pub struct Metadata {
    pub struct_size: usize,
    pub api_version: Api_Version,
}

#[repr(C)]
pub struct Metadata_Extension {
    pub extension_base: Extension_Base,
    pub metadata: *mut Metadata,
}

/// `XLA_FFI_Extension_Metadata`.
pub const METADATA: c_int = 1;
/// `XLA_FFI_ArgType_BUFFER` and `XLA_FFI_RetType_BUFFER`.
pub const BUFFER: c_int = 1;
/// `XLA_FFI_AttrType_ARRAY`.
pub const ARRAY: c_int = 1;
/// `XLA_FFI_DataType_...`.
pub const S64: c_int = 5;
pub const F32: c_int = 11;
pub const BF16: c_int = 16;
/// `XLA_FFI_Error_Code_INTERNAL`.
pub const INTERNAL: c_int = 13;

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::engine::runtime::custom_call_header::Header;

    #[test]
    fn layouts_match_the_header() {
        let mut header = Header::new("xla/ffi/api/c_api.h");
        header.assert(format!("XLA_FFI_API_MAJOR == {} && XLA_FFI_API_MINOR == {}", VERSION.0, VERSION.1));
        for layout in LAYOUTS {
            let c = format!("XLA_FFI_{}", layout.0);
            if layout.0 != "Api" {
                header.assert_layout(&c, layout, str::to_string);
                continue;
            }
            for (field, offset) in
                layout.2.iter().filter(|(field, _)| !["stream_get", "not_used"].contains(field))
            {
                header.assert(format!("offsetof({c}, {field}) == {offset}"));
            }
        }
        header.assert(format!("offsetof(XLA_FFI_Array, data) == {}", offset_of!(Array, data)));
        header.assert(format!("sizeof(XLA_FFI_TypeId) == {}", size_of::<TypeId>()));
        header.assert(format!("offsetof(XLA_FFI_ByteSpan, len) == {}", offset_of!(ByteSpan, len)));
        header.assert(format!(
            "offsetof(XLA_FFI_Handler_Bundle, execute) == {}",
            offset_of!(Handler_Bundle, execute)
        ));
        header.assert(format!(
            "offsetof(XLA_FFI_Extension_Base, type) == {}",
            offset_of!(Extension_Base, r#type)
        ));
        header.assert(format!(
            "offsetof(XLA_FFI_Metadata, api_version) == {}",
            offset_of!(Metadata, api_version)
        ));
        let offset = offset_of!(Metadata_Extension, metadata);
        header.assert(format!("offsetof(XLA_FFI_Metadata_Extension, metadata) == {offset}"));
        for (name, value) in [
            ("Extension_Metadata", METADATA),
            ("ArgType_BUFFER", BUFFER),
            ("RetType_BUFFER", BUFFER),
            ("AttrType_ARRAY", ARRAY),
            ("DataType_S64", S64),
            ("DataType_F32", F32),
            ("DataType_BF16", BF16),
            ("Error_Code_INTERNAL", INTERNAL),
        ] {
            header.assert(format!("XLA_FFI_{name} == {value}"));
        }
        header.compile();
    }
}
