//! The part of the PJRT C API that this program uses: `xla/pjrt/c/pjrt_c_api.h`, version 0.90.
//!
//! Names are those of the header without `PJRT_` and `_Args`. Plugins of other minor versions work too, because every call passes
//! its structure's size and new functions are only added at the table's end.

use std::ffi::{c_char, c_int, c_void};

use crate::engine::runtime::custom_call_header::{Struct, opaque, structs};

/// Makes an error of the plugin of a `PJRT_Error_Code` and a message with its size.
pub type CallbackError = unsafe extern "C" fn(c_int, *const c_char, usize) -> *mut Error;
/// Frees a value that a callback returned.
pub type ValueDeleter = unsafe extern "C" fn(*mut c_char);

/// The API version (major, minor) that this file follows. Plugins of another major version are refused.
pub const VERSION: (i32, i32) = (0, 90);

opaque!(Error Event Client Device DeviceDescription Buffer Executable LoadedExecutable TopologyDescription SerializedExecutable);

/// The arguments and results of one function.
///
/// # Safety
/// The slot's function takes a pointer to this structure and returns an error or null.
pub unsafe trait Args: Struct {
    const SLOT: Slot;
}

macro_rules! functions {
    ($($name:ident)*) => {$(
        // SAFETY: in the header each function takes the structure of its own name, and a test compares the two. `Error_Destroy`
        // and `Error_Message`, which return nothing, are not listed.
        unsafe impl Args for $name {
            const SLOT: Slot = Slot::$name;
        }
    )*};
}

structs! {
    NamedValue {
        name: *const c_char,
        name_size: usize,
        r#type: c_int,
        value: NamedValueUnion,
        value_size: usize,
    }
    Program {
        code: *mut c_char,
        code_size: usize,
        format: *const c_char,
        format_size: usize,
    }
    Buffer_MemoryLayout {
        tiled: Tiled,
        r#type: c_int,
    }
    ExecuteOptions {
        send_callbacks: *mut c_void,
        recv_callbacks: *mut c_void,
        num_send_ops: usize,
        num_recv_ops: usize,
        launch_id: c_int,
        non_donatable_input_indices: *const i64,
        num_non_donatable_input_indices: usize,
        context: *mut c_void,
        call_location: *const c_char,
        num_tasks: usize,
        task_ids: *mut c_int,
        incarnation_ids: *mut i64,
    }
    Error_Destroy {
        error: *mut Error,
    }
    Error_Message {
        error: *const Error,
        message: *const c_char,
        message_size: usize,
    }
    Plugin_Initialize {}
    Event_Destroy {
        event: *mut Event,
    }
    Event_Await {
        event: *mut Event,
    }
    Client_Create {
        create_options: *const NamedValue,
        num_options: usize,
        kv_get_callback: Option<unsafe extern "C" fn(*mut KeyValueGetCallback) -> *mut Error>,
        kv_get_user_arg: *mut c_void,
        kv_put_callback: Option<unsafe extern "C" fn(*mut KeyValuePutCallback) -> *mut Error>,
        kv_put_user_arg: *mut c_void,
        client: *mut Client,
        kv_try_get_callback: Option<unsafe extern "C" fn(*mut KeyValueTryGetCallback) -> *mut Error>,
        kv_try_get_user_arg: *mut c_void,
    }
    KeyValueGetCallback {
        key: *const c_char,
        key_size: usize,
        timeout_in_ms: c_int,
        callback_error: *const CallbackError,
        user_arg: *mut c_void,
        value: *mut c_char,
        value_size: usize,
        value_deleter_callback: Option<ValueDeleter>,
    }
    KeyValueTryGetCallback {
        key: *const c_char,
        key_size: usize,
        callback_error: *const CallbackError,
        user_arg: *mut c_void,
        value: *mut c_char,
        value_size: usize,
        value_deleter_callback: Option<ValueDeleter>,
    }
    KeyValuePutCallback {
        key: *const c_char,
        key_size: usize,
        value: *const c_char,
        value_size: usize,
        callback_error: *const CallbackError,
        user_arg: *mut c_void,
    }
    Client_Destroy {
        client: *mut Client,
    }
    Client_PlatformName {
        client: *mut Client,
        platform_name: *const c_char,
        platform_name_size: usize,
    }
    Client_PlatformVersion {
        client: *mut Client,
        platform_version: *const c_char,
        platform_version_size: usize,
    }
    Client_ProcessIndex {
        client: *mut Client,
        process_index: c_int,
    }
    Client_Devices {
        client: *mut Client,
        devices: *const *mut Device,
        num_devices: usize,
    }
    Client_AddressableDevices {
        client: *mut Client,
        addressable_devices: *const *mut Device,
        num_addressable_devices: usize,
    }
    Client_Compile {
        client: *mut Client,
        program: *const Program,
        compile_options: *const c_char,
        compile_options_size: usize,
        executable: *mut LoadedExecutable,
    }
    Client_BufferFromHostBuffer {
        client: *mut Client,
        data: *const c_void,
        r#type: c_int,
        dims: *const i64,
        num_dims: usize,
        byte_strides: *const i64,
        num_byte_strides: usize,
        host_buffer_semantics: c_int,
        device: *mut Device,
        memory: *mut c_void,
        device_layout: *mut c_void,
        done_with_host_buffer: *mut Event,
        buffer: *mut Buffer,
    }
    DeviceDescription_Id {
        device_description: *mut DeviceDescription,
        id: c_int,
    }
    DeviceDescription_ProcessIndex {
        device_description: *mut DeviceDescription,
        process_index: c_int,
    }
    DeviceDescription_Kind {
        device_description: *mut DeviceDescription,
        device_kind: *const c_char,
        device_kind_size: usize,
    }
    Device_GetDescription {
        device: *mut Device,
        device_description: *mut DeviceDescription,
    }
    Device_MemoryStats {
        device: *mut Device,
        bytes_in_use: i64,
        peak_bytes_in_use: i64,
        peak_bytes_in_use_is_set: bool,
        num_allocs: i64,
        num_allocs_is_set: bool,
        largest_alloc_size: i64,
        largest_alloc_size_is_set: bool,
        bytes_limit: i64,
        bytes_limit_is_set: bool,
        bytes_reserved: i64,
        bytes_reserved_is_set: bool,
        peak_bytes_reserved: i64,
        peak_bytes_reserved_is_set: bool,
        bytes_reservable_limit: i64,
        bytes_reservable_limit_is_set: bool,
        largest_free_block_bytes: i64,
        largest_free_block_bytes_is_set: bool,
        pool_bytes: i64,
        pool_bytes_is_set: bool,
        peak_pool_bytes: i64,
        peak_pool_bytes_is_set: bool,
    }
    Executable_Destroy {
        executable: *mut Executable,
    }
    Executable_NumOutputs {
        executable: *mut Executable,
        num_outputs: usize,
    }
    Executable_SizeOfGeneratedCodeInBytes {
        executable: *mut Executable,
        size_in_bytes: i64,
    }
    Executable_GetCostAnalysis {
        executable: *mut Executable,
        num_properties: usize,
        properties: *const NamedValue,
    }
    Executable_OptimizedProgram {
        executable: *mut Executable,
        program: *mut Program,
    }
    Executable_GetCompiledMemoryStats {
        executable: *mut Executable,
        generated_code_size_in_bytes: i64,
        argument_size_in_bytes: i64,
        output_size_in_bytes: i64,
        alias_size_in_bytes: i64,
        temp_size_in_bytes: i64,
        host_generated_code_size_in_bytes: i64,
        host_argument_size_in_bytes: i64,
        host_output_size_in_bytes: i64,
        host_alias_size_in_bytes: i64,
        host_temp_size_in_bytes: i64,
        peak_memory_in_bytes: i64,
        total_size_in_bytes: i64,
    }
    Executable_Serialize {
        executable: *const Executable,
        serialized_bytes: *const c_char,
        serialized_bytes_size: usize,
        serialized_executable: *mut SerializedExecutable,
        serialized_executable_deleter: Option<unsafe extern "C" fn(*mut SerializedExecutable)>,
    }
    Executable_DeserializeAndLoad {
        client: *mut Client,
        serialized_executable: *const c_char,
        serialized_executable_size: usize,
        loaded_executable: *mut LoadedExecutable,
        overridden_serialized_compile_options: *const c_char,
        overridden_serialized_compile_options_size: usize,
    }
    LoadedExecutable_Destroy {
        executable: *mut LoadedExecutable,
    }
    LoadedExecutable_GetExecutable {
        loaded_executable: *mut LoadedExecutable,
        executable: *mut Executable,
    }
    LoadedExecutable_AddressableDevices {
        executable: *mut LoadedExecutable,
        addressable_devices: *const *mut Device,
        num_addressable_devices: usize,
    }
    LoadedExecutable_Execute {
        executable: *mut LoadedExecutable,
        options: *mut ExecuteOptions,
        argument_lists: *const *const *mut Buffer,
        num_devices: usize,
        num_args: usize,
        output_lists: *const *mut *mut Buffer,
        device_complete_events: *mut *mut Event,
        execute_device: *mut Device,
    }
    Buffer_Destroy {
        buffer: *mut Buffer,
    }
    Buffer_ToHostBuffer {
        src: *mut Buffer,
        host_layout: *mut Buffer_MemoryLayout,
        dst: *mut c_void,
        dst_size: usize,
        event: *mut Event,
    }
    TopologyDescription_Create {
        topology_name: *const c_char,
        topology_name_size: usize,
        create_options: *const NamedValue,
        num_options: usize,
        topology: *mut TopologyDescription,
    }
    TopologyDescription_Destroy {
        topology: *mut TopologyDescription,
    }
    TopologyDescription_GetDeviceDescriptions {
        topology: *const TopologyDescription,
        descriptions: *const *mut DeviceDescription,
        num_descriptions: usize,
    }
    Compile {
        topology: *const TopologyDescription,
        program: *const Program,
        compile_options: *const c_char,
        compile_options_size: usize,
        client: *mut Client,
        executable: *mut Executable,
    }
}

functions! {
    Plugin_Initialize Event_Destroy Event_Await
    Client_Create Client_Destroy Client_PlatformName Client_ProcessIndex Client_PlatformVersion Client_Devices
    Client_AddressableDevices Client_Compile Client_BufferFromHostBuffer
    DeviceDescription_Id DeviceDescription_ProcessIndex DeviceDescription_Kind Device_GetDescription Device_MemoryStats
    Executable_Destroy Executable_NumOutputs Executable_SizeOfGeneratedCodeInBytes Executable_GetCostAnalysis
    Executable_OptimizedProgram Executable_Serialize Executable_DeserializeAndLoad
    Executable_GetCompiledMemoryStats LoadedExecutable_Destroy
    LoadedExecutable_GetExecutable LoadedExecutable_AddressableDevices LoadedExecutable_Execute Buffer_Destroy Buffer_ToHostBuffer
    TopologyDescription_Create TopologyDescription_Destroy TopologyDescription_GetDeviceDescriptions Compile
}

#[repr(C)]
#[derive(Clone, Copy)]
pub union NamedValueUnion {
    pub string: *const c_char,
    pub int64: i64,
    pub int64_array: *const i64,
    pub float: f32,
    pub bool: bool,
}

/// `PJRT_NamedValue_Type`.
pub mod named {
    pub const STRING: i32 = 0;
    pub const INT64: i32 = 1;
    pub const INT64_LIST: i32 = 2;
    pub const FLOAT: i32 = 3;
    pub const BOOL: i32 = 4;
}

/// `PJRT_Buffer_MemoryLayout_Tiled`: the larger variant of a memory layout's union, and the only one used here.
#[repr(C)]
pub struct Tiled {
    pub struct_size: usize,
    pub extension_start: *mut c_void,
    pub minor_to_major: *const i64,
    pub minor_to_major_size: usize,
    pub tile_dims: *const i64,
    pub tile_dim_sizes: *const usize,
    pub num_tiles: usize,
}

/// `PJRT_HostBufferSemantics_kImmutableOnlyDuringCall`.
pub const ONLY_DURING_CALL: c_int = 0;
/// `PJRT_Buffer_MemoryLayout_Type_Tiled`.
pub const LAYOUT_TILED: c_int = 0;

/// The head of `PJRT_Api`. One function pointer for each [`Slot`] follows it.
#[repr(C)]
pub struct Api {
    pub struct_size: usize,
    pub extension_start: *mut c_void,
    pub version_struct_size: usize,
    pub version_extension_start: *mut c_void,
    pub major: c_int,
    pub minor: c_int,
}

macro_rules! slots {
    ($($name:ident)*) => {
        /// The functions of `PJRT_Api` in order, up to the last one that this program calls.
        #[allow(dead_code)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Slot {
            $($name,)*
        }

        /// Names and offsets, for comparison with the header.
        #[cfg(test)]
        pub const SLOTS: &[(&str, usize)] = &[$((stringify!($name), Slot::$name.offset())),*];
    };
}

impl Slot {
    /// Returns the byte offset of the function's pointer in `PJRT_Api`.
    pub const fn offset(self) -> usize {
        size_of::<Api>() + self as usize * size_of::<usize>()
    }
}

slots! {
    Error_Destroy Error_Message Error_GetCode
    Plugin_Initialize Plugin_Attributes
    Event_Destroy Event_IsReady Event_Error Event_Await Event_OnReady
    Client_Create Client_Destroy Client_PlatformName Client_ProcessIndex Client_PlatformVersion Client_Devices
    Client_AddressableDevices Client_LookupDevice Client_LookupAddressableDevice Client_AddressableMemories
    Client_Compile Client_DefaultDeviceAssignment Client_BufferFromHostBuffer
    DeviceDescription_Id DeviceDescription_ProcessIndex DeviceDescription_Attributes DeviceDescription_Kind
    DeviceDescription_DebugString DeviceDescription_ToString
    Device_GetDescription Device_IsAddressable Device_LocalHardwareId Device_AddressableMemories
    Device_DefaultMemory Device_MemoryStats
    Memory_Id Memory_Kind Memory_DebugString Memory_ToString Memory_AddressableByDevices
    Executable_Destroy Executable_Name Executable_NumReplicas Executable_NumPartitions Executable_NumOutputs
    Executable_SizeOfGeneratedCodeInBytes Executable_GetCostAnalysis Executable_OutputMemoryKinds
    Executable_OptimizedProgram Executable_Serialize
    LoadedExecutable_Destroy LoadedExecutable_GetExecutable LoadedExecutable_AddressableDevices
    LoadedExecutable_Delete LoadedExecutable_IsDeleted LoadedExecutable_Execute Executable_DeserializeAndLoad
    LoadedExecutable_Fingerprint
    Buffer_Destroy Buffer_ElementType Buffer_Dimensions Buffer_UnpaddedDimensions
    Buffer_DynamicDimensionIndices Buffer_GetMemoryLayout Buffer_OnDeviceSizeInBytes Buffer_Device Buffer_Memory
    Buffer_Delete Buffer_IsDeleted Buffer_CopyToDevice Buffer_ToHostBuffer Buffer_IsOnCpu Buffer_ReadyEvent
    Buffer_UnsafePointer Buffer_IncreaseExternalReferenceCount Buffer_DecreaseExternalReferenceCount
    Buffer_OpaqueDeviceMemoryDataPointer
    CopyToDeviceStream_Destroy CopyToDeviceStream_AddChunk CopyToDeviceStream_TotalBytes
    CopyToDeviceStream_GranuleSize CopyToDeviceStream_CurrentBytes
    TopologyDescription_Create TopologyDescription_Destroy TopologyDescription_PlatformName
    TopologyDescription_PlatformVersion TopologyDescription_GetDeviceDescriptions TopologyDescription_Serialize
    TopologyDescription_Attributes
    Compile
    Executable_OutputElementTypes Executable_OutputDimensions Buffer_CopyToMemory
    Client_CreateViewOfDeviceBuffer Executable_Fingerprint Client_TopologyDescription
    Executable_GetCompiledMemoryStats
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::runtime::custom_call_header::Header;

    #[test]
    fn layouts_match_the_header() {
        let mut header = Header::new("xla/pjrt/c/pjrt_c_api.h");
        header.assert(format!("PJRT_API_MAJOR == {} && PJRT_API_MINOR == {}", VERSION.0, VERSION.1));
        for (name, offset) in SLOTS {
            header.assert(format!("offsetof(PJRT_Api, PJRT_{name}) == {offset}"));
        }
        for layout in LAYOUTS {
            let no_arguments =
                ["NamedValue", "Program", "Buffer_MemoryLayout", "ExecuteOptions"].contains(&layout.0);
            let c = format!("PJRT_{}{}", layout.0, if no_arguments { "" } else { "_Args" });
            header.assert_layout(&c, layout, |field| match field {
                "value" if layout.0 == "NamedValue" => "string_value".into(),
                other => other.trim_start_matches("r#").into(),
            });
        }
        header.assert(format!("sizeof(PJRT_Buffer_MemoryLayout_Tiled) == {}", size_of::<Tiled>()));
        let offset = std::mem::offset_of!(Tiled, num_tiles);
        header.assert(format!("offsetof(PJRT_Buffer_MemoryLayout_Tiled, num_tiles) == {offset}"));
        header.compile();
    }
}
