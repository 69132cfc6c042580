//! The oneDNN library, loaded, and the functions of its C interface (version 3) that weight gradients need.

use std::ffi::{c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use anyhow::{Context, Result, anyhow, ensure};
use libloading::os::unix::{Library as Shared, RTLD_LOCAL, RTLD_NOW};

/// The file's name, for the loader: it looks beside XLA's library, where tools/setup puts it, and in the system's folders.
const FILE: &str = "libdnnl.so.3";

type Handle = *mut c_void;
type Destroy = unsafe extern "C" fn(Handle) -> c_int;

/// Sizes, strides and the like of up to twelve dimensions (`dnnl_dims_t`).
type Dims = [i64; 12];

/// Types of numbers (`dnnl_data_type_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Number {
    Bf16 = 2,
    F32 = 3,
}

/// What an array is to a primitive (`DNNL_ARG_...`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Source = 1,
    Destination = 17,
    Scratch = 80,
    DestinationGradient = 145,
    WeightGradient = 161,
}

/// Descriptions that a primitive has of its arrays (`dnnl_query_...`).
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
const SCRATCH_OF_THE_USER: c_int = 1;

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
        /// Pointers to the library's functions, by their names without `dnnl_`.
        struct Functions {
            $($name: unsafe extern "C" fn($($type),*) -> $result,)*
        }

        impl Functions {
            fn load(shared: &Shared) -> Result<Functions> {
                Ok(Functions {$(
                    $name: {
                        let name = concat!("dnnl_", stringify!($name));
                        // SAFETY: the type is the one that the library's header gives the function.
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

/// An object of the library's, of one kind: the library takes any pointer for what it expects.
pub struct Object<K> {
    handle: NonNull<c_void>,
    destroy: Destroy,
    kind: PhantomData<K>,
}

/// Kinds of objects (`dnnl_memory_desc_t`, `dnnl_primitive_desc_t` and so on).
pub enum ArrayDescription {}
enum PrimitiveDescription {}
enum PrimitiveItself {}
enum Attributes {}
enum PostOps {}
enum Stream {}
enum Memory {}

// SAFETY: objects are not changed after they were made, and the library lets constant ones be used by several threads.
unsafe impl<K> Send for Object<K> {}
// SAFETY: as above.
unsafe impl<K> Sync for Object<K> {}

impl<K> Drop for Object<K> {
    fn drop(&mut self) {
        // SAFETY: this is the function that ends objects of this kind, and nobody else has this one.
        unsafe { (self.destroy)(self.handle.as_ptr()) };
    }
}

impl<K> Object<K> {
    fn handle(&self) -> Handle {
        self.handle.as_ptr()
    }
}

/// The description of an array.
pub type Array = Object<ArrayDescription>;

/// A primitive that does its work on the thread that calls it.
pub struct Primitive {
    primitive: Object<PrimitiveItself>,
    /// Its arrays, in the order in which [`Library::execute`] takes their addresses.
    arrays: Vec<(Role, Array)>,
}

impl Primitive {
    /// The description of one of its arrays.
    pub fn array(&self, role: Role) -> Option<&Array> {
        self.arrays.iter().find(|(r, _)| *r == role).map(|(_, array)| array)
    }
}

/// How a kernel moves over an image: rows, columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Moves {
    pub stride: [i64; 2],
    pub dilation: [i64; 2],
    /// Zeros before and after the image, none of them negative.
    pub before: [i64; 2],
    pub after: [i64; 2],
}

pub struct Library {
    functions: Functions,
    engine: Handle,
    /// Sets the number of threads of the library's parts on the calling thread, where the library has threads of its own.
    set_threads: Option<unsafe extern "C" fn(c_int)>,
}

// SAFETY: an engine may be used by all threads.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: the engine is this library's own. Objects made with it are dropped before, or hold it.
        unsafe { (self.functions.engine_destroy)(self.engine) };
    }
}

fn padded<const N: usize>(values: [i64; N]) -> Dims {
    let mut dims = [0; 12];
    dims[..N].copy_from_slice(&values);
    dims
}

fn check(status: c_int, what: &str) -> Result<()> {
    ensure!(status == SUCCESS, "oneDNN's {what} failed with status {status}");
    Ok(())
}

impl Library {
    /// Loads the library.
    ///
    /// # Errors
    /// When there is none, or one of another version.
    pub fn load() -> Result<Library> {
        // SAFETY: loading runs the library's initializers, which touch nothing of ours.
        let shared = unsafe { Shared::open(Some(FILE), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| {
            anyhow!(
                "there is no oneDNN for weight gradients ({:#}): run tools/setup and build again; if it is libgomp that is \
                 missing, install it (Debian: apt install libgomp1)",
                anyhow::Error::from(error)
            )
        })?;
        let functions = Functions::load(&shared)?;
        // SAFETY: it gives a constant structure, whose first fields are the same in all versions.
        let version = unsafe { &*(functions.version)() };
        ensure!(version.major == 3, "{FILE} is version {}.{} of oneDNN, not 3", version.major, version.minor);
        // Threads of its own would take the cores of XLA's. GNU's and LLVM's libraries both have this function.
        // SAFETY: the type is that of the OpenMP standard.
        let set_threads = unsafe { shared.get(b"omp_set_num_threads") }.ok().map(|f| *f);
        // The library stays loaded: it may have threads of its own.
        std::mem::forget(shared);
        let mut engine = ptr::null_mut();
        // SAFETY: it writes a handle.
        check(unsafe { (functions.engine_create)(&raw mut engine, CPU, 0) }, "engine")?;
        Ok(Library { functions, engine, set_threads })
    }

    /// Keeps primitives that this thread makes and runs on this thread.
    fn alone(&self) {
        if let Some(set) = self.set_threads {
            // SAFETY: it sets a number of the calling thread's.
            unsafe { set(1) };
        }
    }

    /// An object by the function that makes it.
    ///
    /// # Safety
    /// `make` writes an object of this kind, which is nobody else's and which `destroy` ends, or says that it failed.
    unsafe fn object<K>(
        &self,
        what: &str,
        destroy: Destroy,
        make: impl FnOnce(&Functions, *mut Handle) -> c_int,
    ) -> Result<Object<K>> {
        let mut handle = ptr::null_mut();
        check(make(&self.functions, &raw mut handle), what)?;
        let handle = NonNull::new(handle).with_context(|| format!("oneDNN gave no {what}"))?;
        Ok(Object { handle, destroy, kind: PhantomData })
    }

    /// The description of an array of four dimensions, by the distance of neighbours along each; without, the library
    /// chooses.
    pub fn array(&self, number: Number, dims: [i64; 4], strides: Option<[i64; 4]>) -> Result<Array> {
        let (dims, number) = (padded(dims), number as c_int);
        // SAFETY: both functions write a new description to `to`, and read sizes and strides during the call.
        unsafe {
            self.object("memory description", self.functions.memory_desc_destroy, |f, to| {
                match strides.map(padded) {
                    Some(strides) => (f.memory_desc_create_with_strides)(
                        to,
                        4,
                        &raw const dims,
                        number,
                        &raw const strides,
                    ),
                    None => (f.memory_desc_create_with_tag)(to, 4, &raw const dims, number, ANY_FORMAT),
                }
            })
        }
    }

    /// The description of a part of an array, to be used with the whole array's address.
    pub fn part(&self, of: &Array, dims: [i64; 4], from: [i64; 4]) -> Result<Array> {
        let (dims, from) = (padded(dims), padded(from));
        // SAFETY: the function writes a new description to `to`, and reads sizes during the call.
        unsafe {
            self.object("memory description", self.functions.memory_desc_destroy, |f, to| {
                (f.memory_desc_create_submemory)(to, of.handle(), &raw const dims, &raw const from)
            })
        }
    }

    /// Bytes of an array.
    pub fn bytes(&self, array: &Array) -> usize {
        // SAFETY: the object is a description of an array.
        unsafe { (self.functions.memory_desc_get_size)(array.handle()) }
    }

    /// The primitive of a weight gradient. Dimensions are (batch, channels, rows, columns) of image and cotangent, and
    /// (out, in, rows, columns) of the kernel; it takes the addresses of image, cotangent, result and scratch.
    pub fn weight_gradient(
        &self,
        image: Array,
        kernel: &Array,
        cotangent: Array,
        forward_kernel: &Array,
        moves: &Moves,
    ) -> Result<Primitive> {
        self.alone();
        let f = &self.functions;
        let [stride, before, after] = [moves.stride, moves.before, moves.after].map(padded);
        // The library counts the places between neighbours.
        let dilation = padded(moves.dilation.map(|d| d - 1));
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
        let whole = |query| self.queried(&description, query);
        let (result, scratch) = (whole(Query::WeightGradient)?, whole(Query::Scratch)?);
        let arrays = vec![
            (Role::Source, image),
            (Role::DestinationGradient, cotangent),
            (Role::WeightGradient, result),
            (Role::Scratch, scratch),
        ];
        self.primitive(&description, arrays)
    }

    /// The primitive that writes an array in another form, or adds it to what is there. It takes the addresses of the two.
    pub fn copy(&self, from: Array, to: Array, add: bool) -> Result<Primitive> {
        self.alone();
        let f = &self.functions;
        let attributes = self.attributes()?;
        if add {
            // SAFETY: the function writes a new object to `to`.
            let post: Object<PostOps> =
                unsafe { self.object("sum", f.post_ops_destroy, |f, to| (f.post_ops_create)(to)) }?;
            // SAFETY: both objects live; the library copies what it is told. 0 is the array's own type.
            check(unsafe { (f.post_ops_append_sum)(post.handle(), 1.0, 0, 0) }, "sum")?;
            // SAFETY: as above.
            check(unsafe { (f.primitive_attr_set_post_ops)(attributes.handle(), post.handle()) }, "sum")?;
        }
        let (source, target) = (from.handle(), to.handle());
        // SAFETY: the function writes a new description to `at`; all objects live.
        let description = unsafe {
            self.object("copy", f.primitive_desc_destroy, |f, at| {
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
        let scratch = self.bytes(&self.queried(&description, Query::Scratch)?);
        ensure!(scratch == 0, "oneDNN's copy needs memory of its own");
        self.primitive(&description, vec![(Role::Source, from), (Role::Destination, to)])
    }

    /// Primitives share no memory of the library's: then several threads may run one.
    fn attributes(&self) -> Result<Object<Attributes>> {
        let f = &self.functions;
        // SAFETY: the function writes a new object to `to`.
        let attributes: Object<Attributes> = unsafe {
            self.object("attributes", f.primitive_attr_destroy, |f, to| (f.primitive_attr_create)(to))
        }?;
        // SAFETY: the object lives.
        let status =
            unsafe { (f.primitive_attr_set_scratchpad_mode)(attributes.handle(), SCRATCH_OF_THE_USER) };
        check(status, "attributes").map(|()| attributes)
    }

    /// The description that a primitive has of one of its arrays.
    fn queried(&self, description: &Object<PrimitiveDescription>, query: Query) -> Result<Array> {
        // SAFETY: the function writes a new description to `to`, a copy of the answer, which belongs to the primitive's.
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
    /// The addresses are those of arrays as the primitive describes them, in its order, which nobody else writes meanwhile,
    /// and nobody else reads where the primitive writes.
    pub unsafe fn execute(&self, primitive: &Primitive, addresses: &[*mut c_void]) -> Result<()> {
        self.alone();
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
        // SAFETY: all objects live until the call is over: on a CPU's stream the work is done in it.
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
