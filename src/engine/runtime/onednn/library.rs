//! Loads oneDNN at run time and wraps the functions of its C interface (version 3) that weight gradients need.

use std::ffi::{c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use anyhow::{Context, Result, anyhow, ensure};
use libloading::os::unix::{Library as SharedLibrary, RTLD_LOCAL, RTLD_NOW};

/// The file name that the loader searches for: in the folder that build.rs adds to the program's run path, and in the system's
/// folders.
const FILE: &str = "libdnnl.so.3";

type Handle = *mut c_void;
type Destroy = unsafe extern "C" fn(Handle) -> c_int;

/// One integer for each of up to twelve dimensions, such as sizes or strides (`dnnl_dims_t`).
type Dims = [i64; 12];

/// An element type (`dnnl_data_type_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    Bf16 = 2,
    F32 = 3,
}

/// The role of an array in a primitive (`DNNL_ARG_...`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Source = 1,
    Destination = 17,
    Scratch = 80,
    DestinationGradient = 145,
    WeightGradient = 161,
}

/// An array description that a primitive can be asked for (`dnnl_query_...`).
#[derive(Clone, Copy)]
enum Query {
    WeightGradient = 132,
    Scratch = 136,
}

const SUCCESS: c_int = 0;
const CPU: c_int = 1;
const FORWARD_TRAINING: c_int = 64;
const DIRECT: c_int = 1;
const IN_ORDER: c_uint = 1;
const ANY_FORMAT: c_int = 1;
const USER_SCRATCHPAD: c_int = 1;

/// `dnnl_version_t`.
#[repr(C)]
struct Version {
    major: c_int,
    minor: c_int,
}

/// `dnnl_exec_arg_t`.
#[repr(C)]
struct Argument {
    role: c_int,
    memory: Handle,
}

macro_rules! functions {
    ($($name:ident: fn($($type:ty),*) -> $result:ty,)*) => {
        /// Pointers to the library's functions, named without `dnnl_`.
        struct Functions {
            $($name: unsafe extern "C" fn($($type),*) -> $result,)*
        }

        impl Functions {
            fn load(shared: &SharedLibrary) -> Result<Functions> {
                Ok(Functions {$(
                    $name: {
                        let name = concat!("dnnl_", stringify!($name));
                        // SAFETY: the type is that of the function in the library's header.
                        *unsafe { shared.get(name.as_bytes()) }.with_context(|| format!("{FILE} has no {name}"))?
                    },
                )*})
            }
        }
    };
}

functions! {
    version: fn() -> *const Version,
    engine_create: fn(*mut Handle, c_int, usize) -> c_int,
    engine_destroy: fn(Handle) -> c_int,
    stream_create: fn(*mut Handle, Handle, c_uint) -> c_int,
    stream_destroy: fn(Handle) -> c_int,
    memory_desc_create_with_tag: fn(*mut Handle, c_int, *const Dims, c_int, c_int) -> c_int,
    memory_desc_create_with_strides: fn(*mut Handle, c_int, *const Dims, c_int, *const Dims) -> c_int,
    memory_desc_create_submemory: fn(*mut Handle, Handle, *const Dims, *const Dims) -> c_int,
    memory_desc_clone: fn(*mut Handle, Handle) -> c_int,
    memory_desc_destroy: fn(Handle) -> c_int,
    memory_desc_get_size: fn(Handle) -> usize,
    memory_create: fn(*mut Handle, Handle, Handle, *mut c_void) -> c_int,
    memory_destroy: fn(Handle) -> c_int,
    primitive_attr_create: fn(*mut Handle) -> c_int,
    primitive_attr_destroy: fn(Handle) -> c_int,
    primitive_attr_set_scratchpad_mode: fn(Handle, c_int) -> c_int,
    primitive_attr_set_post_ops: fn(Handle, Handle) -> c_int,
    post_ops_create: fn(*mut Handle) -> c_int,
    post_ops_destroy: fn(Handle) -> c_int,
    post_ops_append_sum: fn(Handle, f32, i32, c_int) -> c_int,
    convolution_forward_primitive_desc_create:
        fn(*mut Handle, Handle, c_int, c_int, Handle, Handle, Handle, Handle, *const Dims, *const Dims, *const Dims, *const Dims, Handle) -> c_int,
    convolution_backward_weights_primitive_desc_create:
        fn(*mut Handle, Handle, c_int, Handle, Handle, Handle, Handle, *const Dims, *const Dims, *const Dims, *const Dims, Handle, Handle) -> c_int,
    reorder_primitive_desc_create: fn(*mut Handle, Handle, Handle, Handle, Handle, Handle) -> c_int,
    primitive_desc_query_md: fn(Handle, c_int, c_int) -> Handle,
    primitive_desc_destroy: fn(Handle) -> c_int,
    primitive_create: fn(*mut Handle, Handle) -> c_int,
    primitive_destroy: fn(Handle) -> c_int,
    primitive_execute: fn(Handle, Handle, c_int, *const Argument) -> c_int,
}

/// An object of the library. The type parameter tells kinds of objects apart, because the library's handles are all untyped
/// pointers.
pub struct Object<K> {
    handle: NonNull<c_void>,
    destroy: Destroy,
    kind: PhantomData<K>,
}

/// Kind of an array description (`dnnl_memory_desc_t`). The enums below are the other kinds.
pub enum ArrayDescription {}
enum PrimitiveDescription {}
enum PrimitiveItself {}
enum Attributes {}
enum PostOps {}
enum Stream {}
enum Memory {}

// SAFETY: objects are constant once created, and the library allows several threads to use constant objects.
unsafe impl<K> Send for Object<K> {}
// SAFETY: as above.
unsafe impl<K> Sync for Object<K> {}

impl<K> Drop for Object<K> {
    fn drop(&mut self) {
        // SAFETY: `destroy` is the function that frees objects of this kind, and this value is the only owner.
        unsafe { (self.destroy)(self.handle.as_ptr()) };
    }
}

impl<K> Object<K> {
    fn handle(&self) -> Handle {
        self.handle.as_ptr()
    }
}

/// The description of an array: its sizes, element type and layout.
pub type Array = Object<ArrayDescription>;

/// A primitive that runs on the calling thread.
pub struct Primitive {
    primitive: Object<PrimitiveItself>,
    /// Its arrays, in the order in which [`OneDnnLibrary::execute`] takes their addresses.
    arrays: Vec<(Role, Array)>,
}

impl Primitive {
    /// Returns the description of the array with this role.
    pub fn array(&self, role: Role) -> Option<&Array> {
        self.arrays.iter().find(|(r, _)| *r == role).map(|(_, array)| array)
    }
}

/// The window of a convolution: (rows, columns) of each quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    pub stride: [i64; 2],
    pub dilation: [i64; 2],
    /// Zeros added before the image's first row and column. Never negative.
    pub before: [i64; 2],
    /// Zeros added after the image's last row and column. Never negative.
    pub after: [i64; 2],
}

/// The loaded library and its CPU engine.
pub struct OneDnnLibrary {
    functions: Functions,
    engine: Handle,
    /// `omp_set_num_threads`, if the library was built with OpenMP.
    set_threads: Option<unsafe extern "C" fn(c_int)>,
}

// SAFETY: an engine may be used by all threads.
unsafe impl Send for OneDnnLibrary {}
// SAFETY: as above.
unsafe impl Sync for OneDnnLibrary {}

impl Drop for OneDnnLibrary {
    fn drop(&mut self) {
        // SAFETY: this value owns the engine. Objects that use the engine were dropped before, or keep it alive themselves.
        unsafe { (self.functions.engine_destroy)(self.engine) };
    }
}

/// Fills the unused dimensions with zeros.
fn to_dims<const N: usize>(values: [i64; N]) -> Dims {
    let mut dims = [0; 12];
    dims[..N].copy_from_slice(&values);
    dims
}

fn check(status: c_int, operation: &str) -> Result<()> {
    ensure!(status == SUCCESS, "oneDNN's {operation} failed with status {status}");
    Ok(())
}

impl OneDnnLibrary {
    /// Loads the library.
    ///
    /// # Errors
    /// When it is not found or has another major version.
    pub fn load() -> Result<OneDnnLibrary> {
        // SAFETY: loading runs the library's initializers, which do not touch this program's data.
        let shared = unsafe { SharedLibrary::open(Some(FILE), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| {
            anyhow!(
                "there is no oneDNN for weight gradients ({:#}): run tools/setup and build again; if it is libgomp that is \
                 missing, install it (Debian: apt install libgomp1)",
                anyhow::Error::from(error)
            )
        })?;
        let functions = Functions::load(&shared)?;
        // SAFETY: it returns a constant structure whose first fields are the same in all versions.
        let version = unsafe { &*(functions.version)() };
        ensure!(version.major == 3, "{FILE} is version {}.{} of oneDNN, not 3", version.major, version.minor);
        // OpenMP threads would compete with XLA's for the cores. GNU's and LLVM's OpenMP libraries both have this function.
        // SAFETY: the type is that of the OpenMP standard.
        let set_threads = unsafe { shared.get(b"omp_set_num_threads") }.ok().map(|f| *f);
        // Keep the library loaded: it may have started threads.
        std::mem::forget(shared);
        let mut engine = ptr::null_mut();
        // SAFETY: the function writes a handle.
        check(unsafe { (functions.engine_create)(&raw mut engine, CPU, 0) }, "engine")?;
        Ok(OneDnnLibrary { functions, engine, set_threads })
    }

    /// Makes the primitives that this thread creates and runs use no other threads.
    fn use_one_thread(&self) {
        if let Some(set) = self.set_threads {
            // SAFETY: the function only sets a variable of the calling thread.
            unsafe { set(1) };
        }
    }

    /// Creates an object with the library's function for it.
    ///
    /// # Safety
    /// `create` writes a new object of kind `K`, which has no other owner and which `destroy` frees, or returns an error status.
    unsafe fn object<K>(
        &self,
        name: &str,
        destroy: Destroy,
        create: impl FnOnce(&Functions, *mut Handle) -> c_int,
    ) -> Result<Object<K>> {
        let mut handle = ptr::null_mut();
        check(create(&self.functions, &raw mut handle), name)?;
        let handle = NonNull::new(handle).with_context(|| format!("oneDNN returned no {name}"))?;
        Ok(Object { handle, destroy, kind: PhantomData })
    }

    /// Describes an array of four dimensions with these strides, in elements. Without strides, the library chooses the layout.
    pub fn array(&self, element: ElementType, dims: [i64; 4], strides: Option<[i64; 4]>) -> Result<Array> {
        let (dims, element) = (to_dims(dims), element as c_int);
        // SAFETY: both functions write a new description to `to`, and read sizes and strides during the call.
        unsafe {
            self.object("memory description", self.functions.memory_desc_destroy, |f, to| {
                match strides.map(to_dims) {
                    Some(strides) => (f.memory_desc_create_with_strides)(
                        to,
                        4,
                        &raw const dims,
                        element,
                        &raw const strides,
                    ),
                    None => (f.memory_desc_create_with_tag)(to, 4, &raw const dims, element, ANY_FORMAT),
                }
            })
        }
    }

    /// Describes a block of an array: its sizes and its first index. The description goes with the whole array's address.
    pub fn block(&self, array: &Array, dims: [i64; 4], start: [i64; 4]) -> Result<Array> {
        let (dims, start) = (to_dims(dims), to_dims(start));
        // SAFETY: the function writes a new description to `to`, and reads sizes during the call.
        unsafe {
            self.object("memory description", self.functions.memory_desc_destroy, |f, to| {
                (f.memory_desc_create_submemory)(to, array.handle(), &raw const dims, &raw const start)
            })
        }
    }

    /// Returns the size of an array in bytes.
    pub fn bytes(&self, array: &Array) -> usize {
        // SAFETY: the object is a description of an array.
        unsafe { (self.functions.memory_desc_get_size)(array.handle()) }
    }

    /// Creates the primitive that computes a weight gradient.
    ///
    /// Image and cotangent have dimensions (batch, channels, rows, columns), the kernel (out, in, rows, columns). The primitive
    /// takes the addresses of image, cotangent, result and scratch memory.
    pub fn weight_gradient(
        &self,
        image: Array,
        kernel: &Array,
        cotangent: Array,
        forward_kernel: &Array,
        window: &Window,
    ) -> Result<Primitive> {
        self.use_one_thread();
        let f = &self.functions;
        let [stride, before, after] = [window.stride, window.before, window.after].map(to_dims);
        // oneDNN's dilation counts the pixels between two neighbouring kernel elements.
        let dilation = to_dims(window.dilation.map(|d| d - 1));
        let attributes = self.attributes()?;
        let [stride, dilation, before, after] =
            [&raw const stride, &raw const dilation, &raw const before, &raw const after];
        // SAFETY: the function writes a new description to `to`; all objects live, sizes are read during the call.
        let forward: Object<PrimitiveDescription> = unsafe {
            self.object("convolution", f.primitive_desc_destroy, |f, to| {
                (f.convolution_forward_primitive_desc_create)(
                    to,
                    self.engine,
                    FORWARD_TRAINING,
                    DIRECT,
                    image.handle(),
                    forward_kernel.handle(),
                    ptr::null_mut(),
                    cotangent.handle(),
                    stride,
                    dilation,
                    before,
                    after,
                    attributes.handle(),
                )
            })
        }?;
        // SAFETY: as above.
        let description = unsafe {
            self.object("weight gradient", f.primitive_desc_destroy, |f, to| {
                (f.convolution_backward_weights_primitive_desc_create)(
                    to,
                    self.engine,
                    DIRECT,
                    image.handle(),
                    kernel.handle(),
                    ptr::null_mut(),
                    cotangent.handle(),
                    stride,
                    dilation,
                    before,
                    after,
                    forward.handle(),
                    attributes.handle(),
                )
            })
        }?;
        let query = |query| self.query_array(&description, query);
        let (result, scratch) = (query(Query::WeightGradient)?, query(Query::Scratch)?);
        let arrays = vec![
            (Role::Source, image),
            (Role::DestinationGradient, cotangent),
            (Role::WeightGradient, result),
            (Role::Scratch, scratch),
        ];
        self.primitive(&description, arrays)
    }

    /// Creates the primitive that copies an array into another layout, or adds it to the destination (oneDNN's "reorder"). It
    /// takes the addresses of source and destination.
    pub fn reorder(&self, from: Array, to: Array, add: bool) -> Result<Primitive> {
        self.use_one_thread();
        let f = &self.functions;
        let attributes = self.attributes()?;
        if add {
            // SAFETY: the function writes a new object to `to`.
            let post: Object<PostOps> =
                unsafe { self.object("sum", f.post_ops_destroy, |f, to| (f.post_ops_create)(to)) }?;
            // SAFETY: both objects live, and the library copies the arguments. Type 0 is the array's own element type.
            check(unsafe { (f.post_ops_append_sum)(post.handle(), 1.0, 0, 0) }, "sum")?;
            // SAFETY: as above.
            check(unsafe { (f.primitive_attr_set_post_ops)(attributes.handle(), post.handle()) }, "sum")?;
        }
        let (source, target) = (from.handle(), to.handle());
        // SAFETY: the function writes a new description to `at`; all objects live.
        let description = unsafe {
            self.object("reorder", f.primitive_desc_destroy, |f, at| {
                (f.reorder_primitive_desc_create)(
                    at,
                    source,
                    self.engine,
                    target,
                    self.engine,
                    attributes.handle(),
                )
            })
        }?;
        let scratch = self.bytes(&self.query_array(&description, Query::Scratch)?);
        ensure!(scratch == 0, "oneDNN's reorder needs {scratch} bytes of scratch memory");
        self.primitive(&description, vec![(Role::Source, from), (Role::Destination, to)])
    }

    /// Creates attributes that make the caller provide scratch memory. Without memory of its own, several threads may run one
    /// primitive at once.
    fn attributes(&self) -> Result<Object<Attributes>> {
        let f = &self.functions;
        // SAFETY: the function writes a new object to `to`.
        let attributes: Object<Attributes> = unsafe {
            self.object("attributes", f.primitive_attr_destroy, |f, to| (f.primitive_attr_create)(to))
        }?;
        // SAFETY: the object lives.
        let status = unsafe { (f.primitive_attr_set_scratchpad_mode)(attributes.handle(), USER_SCRATCHPAD) };
        check(status, "attributes").map(|()| attributes)
    }

    /// Returns a primitive's description of one of its arrays.
    fn query_array(&self, description: &Object<PrimitiveDescription>, query: Query) -> Result<Array> {
        // SAFETY: the function writes a new description to `to`. It copies the answer, which the primitive's description owns.
        unsafe {
            self.object("memory description", self.functions.memory_desc_destroy, |f, to| {
                (f.memory_desc_clone)(
                    to,
                    (f.primitive_desc_query_md)(description.handle(), query as c_int, 0),
                )
            })
        }
    }

    fn primitive(
        &self,
        description: &Object<PrimitiveDescription>,
        arrays: Vec<(Role, Array)>,
    ) -> Result<Primitive> {
        // SAFETY: the function writes a new primitive to `to`; the description lives.
        let primitive = unsafe {
            self.object("primitive", self.functions.primitive_destroy, |f, to| {
                (f.primitive_create)(to, description.handle())
            })
        }?;
        Ok(Primitive { primitive, arrays })
    }

    /// Runs a primitive on this thread.
    ///
    /// # Safety
    /// The addresses are those of the primitive's arrays, in its order. During the call nobody else writes these arrays, and
    /// nobody else reads the arrays that the primitive writes.
    pub unsafe fn execute(&self, primitive: &Primitive, addresses: &[*mut c_void]) -> Result<()> {
        self.use_one_thread();
        let f = &self.functions;
        // SAFETY: the function writes a new stream to `to`.
        let stream: Object<Stream> = unsafe {
            self.object("stream", f.stream_destroy, |f, to| (f.stream_create)(to, self.engine, IN_ORDER))
        }?;
        let arrays = primitive.arrays.iter().zip(addresses).map(|((_, array), address)| {
            // SAFETY: the function writes a new object to `to`; the description lives, and the address is the caller's
            // promise.
            unsafe {
                self.object::<Memory>("memory", f.memory_destroy, |f, to| {
                    (f.memory_create)(to, array.handle(), self.engine, *address)
                })
            }
        });
        let arrays = arrays.collect::<Result<Vec<_>>>()?;
        let role = |i: usize| primitive.arrays[i].0 as c_int;
        let arguments =
            arrays.iter().enumerate().map(|(i, a)| Argument { role: role(i), memory: a.handle() });
        let arguments: Vec<Argument> = arguments.collect();
        // SAFETY: all objects live until the call is over, and on a CPU stream the work ends before the call returns.
        let status = unsafe {
            (f.primitive_execute)(
                primitive.primitive.handle(),
                stream.handle(),
                arguments.len() as c_int,
                arguments.as_ptr(),
            )
        };
        check(status, "primitive")
    }
}
