//! Declares the structures of XLA's two C interfaces, custom calls and PJRT. Each begins with its size and a list of extensions.
//!
//! The structures are written by hand instead of generated, so that the library builds without the C headers and libclang. Tests
//! compare every size and offset with the headers.

/// A structure that begins with its own size.
pub trait Struct: Default {
    const NAME: &'static str;
}

/// The name, size and field offsets of a structure, for comparison with the C header.
#[cfg(test)]
pub type Layout = (&'static str, usize, &'static [(&'static str, usize)]);

macro_rules! opaque {
    ($($name:ident)*) => {$(
        #[repr(C)]
        pub struct $name {
            _private: [u8; 0],
        }
    )*};
}

macro_rules! structs {
    ($($name:ident { $($field:ident: $type:ty,)* })*) => {
        $(
            #[repr(C)]
            pub struct $name {
                pub struct_size: usize,
                pub extension_start: *mut std::ffi::c_void,
                $(pub $field: $type,)*
            }

            impl $crate::engine::runtime::custom_call_header::Struct for $name {
                const NAME: &'static str = stringify!($name);
            }

            impl Default for $name {
                fn default() -> Self {
                    // SAFETY: every field is a number, a pointer, a function pointer in an Option or a structure of
                    // these. For all of them zero bytes are a valid value.
                    let mut zeros: Self = unsafe { std::mem::zeroed() };
                    zeros.struct_size = size_of::<Self>();
                    zeros
                }
            }
        )*

        #[cfg(test)]
        pub const LAYOUTS: &[$crate::engine::runtime::custom_call_header::Layout] = &[$(
            (stringify!($name), size_of::<$name>(), &[$((stringify!($field), std::mem::offset_of!($name, $field))),*]),
        )*];
    };
}

pub(super) use {opaque, structs};

/// Compares structures with those of a C header by compiling static assertions. The header comes with the XLA library.
#[cfg(test)]
pub struct Header {
    include: std::path::PathBuf,
    text: String,
}

#[cfg(test)]
impl Header {
    pub fn new(name: &str) -> Header {
        let root = std::env::var("XLA_EXTENSION_DIR").unwrap_or_else(|_| ".xla/extension".into());
        let include = std::path::Path::new(&root).join("include");
        assert!(include.join(name).exists(), "run tools/setup: no header in {root}");
        Header { include, text: format!("#include \"{name}\"\n") }
    }

    /// Asserts that a condition in C holds.
    pub fn assert(&mut self, condition: String) {
        self.text += &format!("_Static_assert({condition}, \"\");\n");
    }

    /// Asserts that the header's structure `c` has this layout. `field` translates Rust field names to C.
    pub fn assert_layout(&mut self, c: &str, (_, size, fields): &Layout, field: impl Fn(&str) -> String) {
        self.assert(format!("sizeof({c}) == {size}"));
        for (name, offset) in *fields {
            self.assert(format!("offsetof({c}, {}) == {offset}", field(name)));
        }
    }

    /// Compiles the assertions.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn compile(&self) {
        let file = tempfile::Builder::new().suffix(".c").tempfile().unwrap();
        std::fs::write(file.path(), &self.text).unwrap();
        let mut compiler = std::process::Command::new("cc");
        compiler.args(["-std=c11", "-fsyntax-only", "-I"]).arg(&self.include).arg(file.path());
        let output = compiler.output().expect("a C compiler is installed: Rust links with it");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
