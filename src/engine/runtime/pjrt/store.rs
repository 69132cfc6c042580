//! Lets a plugin use the store that the processes of a run share.
//!
//! The plugin calls the functions here from any of its threads, from the client's creation to its end.

use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use super::api::text;
use super::ffi::{self, CallbackError, KeyValueGetCallback, KeyValuePutCallback, KeyValueTryGetCallback};
use crate::engine::key_values::{KeyError, KeyValues};

/// The store as the plugin sees it. It must live as long as the client.
pub struct Callbacks {
    /// The plugin holds this box's address.
    store: Box<Arc<dyn KeyValues>>,
}

impl Callbacks {
    pub fn new(store: &Arc<dyn KeyValues>) -> Callbacks {
        Callbacks { store: Box::new(store.clone()) }
    }

    /// Adds the functions to the arguments of a client's creation.
    pub fn add_to(&self, create: &mut ffi::Client_Create) {
        let store = ptr::from_ref(self.store.as_ref()).cast_mut().cast::<c_void>();
        create.kv_get_callback = Some(get);
        create.kv_try_get_callback = Some(try_get);
        create.kv_put_callback = Some(put);
        (create.kv_get_user_arg, create.kv_try_get_user_arg, create.kv_put_user_arg) = (store, store, store);
    }
}

unsafe extern "C" fn get(args: *mut KeyValueGetCallback) -> *mut ffi::Error {
    // SAFETY: the plugin passes its arguments, whose inputs are set, and the store of `add_to`. Outputs are only written: plugins
    // do not initialize them.
    unsafe {
        let key = text((*args).key, (*args).key_size);
        let timeout = Duration::from_millis((*args).timeout_in_ms.try_into().unwrap_or(0));
        let found = call((*args).user_arg, |store| store.get(&key, timeout));
        let (value, size, error) = give(found, (*args).callback_error);
        ((*args).value, (*args).value_size) = (value, size);
        // Plugins call it after errors too.
        (*args).value_deleter_callback = Some(free_value);
        error
    }
}

unsafe extern "C" fn try_get(args: *mut KeyValueTryGetCallback) -> *mut ffi::Error {
    // SAFETY: as for `get`.
    unsafe {
        let key = text((*args).key, (*args).key_size);
        let found = call((*args).user_arg, |store| store.try_get(&key));
        let (value, size, error) = give(found, (*args).callback_error);
        ((*args).value, (*args).value_size) = (value, size);
        (*args).value_deleter_callback = Some(free_value);
        error
    }
}

unsafe extern "C" fn put(args: *mut KeyValuePutCallback) -> *mut ffi::Error {
    // SAFETY: as for `get`; the value has as many bytes as the size beside it says.
    unsafe {
        let key = text((*args).key, (*args).key_size);
        let value = super::api::elements((*args).value.cast::<u8>(), (*args).value_size);
        match call((*args).user_arg, |store| store.put(&key, value)) {
            Ok(()) => ptr::null_mut(),
            Err(error) => to_error(&error, (*args).callback_error),
        }
    }
}

/// Calls the store. A panic in it becomes an error, because it must not reach the plugin.
///
/// # Safety
/// `store` is the pointer of [`Callbacks::add_to`], and the [`Callbacks`] live.
unsafe fn call<T>(
    store: *mut c_void,
    work: impl FnOnce(&dyn KeyValues) -> Result<T, KeyError>,
) -> Result<T, KeyError> {
    // SAFETY: promised by the caller. The store may be used by several threads.
    let store = unsafe { &*store.cast::<Arc<dyn KeyValues>>() };
    let panicked = |_| Err(KeyError::Unavailable("the store of the processes panicked".into()));
    catch_unwind(AssertUnwindSafe(|| work(store.as_ref()))).unwrap_or_else(panicked)
}

/// Returns a value that [`free_value`] frees, its size and no error, or no value and an error.
///
/// # Safety
/// As for [`to_error`].
unsafe fn give(
    found: Result<Vec<u8>, KeyError>,
    make_error: *const CallbackError,
) -> (*mut c_char, usize, *mut ffi::Error) {
    match found {
        Ok(bytes) => {
            // The plugin frees the value by its address alone. So its size lies before it.
            let boxed: Box<[u8]> = [&bytes.len().to_ne_bytes()[..], &bytes].concat().into();
            // SAFETY: the box begins with a size of as many bytes.
            let value = unsafe { Box::into_raw(boxed).cast::<u8>().add(size_of::<usize>()) };
            (value.cast(), bytes.len(), ptr::null_mut())
        }
        // SAFETY: promised by the caller.
        Err(error) => (ptr::null_mut(), 0, unsafe { to_error(&error, make_error) }),
    }
}

unsafe extern "C" fn free_value(value: *mut c_char) {
    if value.is_null() {
        return;
    }
    // SAFETY: `give` made the value of a box that begins with the value's size, and the plugin frees it once.
    unsafe {
        let start = value.cast::<u8>().sub(size_of::<usize>());
        let size = start.cast::<usize>().read_unaligned();
        drop(Box::from_raw(ptr::slice_from_raw_parts_mut(start, size_of::<usize>() + size)));
    }
}

/// Makes an error of the plugin.
///
/// # Safety
/// `make_error` points to the plugin's function for it.
unsafe fn to_error(error: &KeyError, make_error: *const CallbackError) -> *mut ffi::Error {
    // `PJRT_Error_Code`.
    let code: c_int = match error {
        KeyError::DeadlineExceeded(_) => 4,
        KeyError::NotFound(_) => 5,
        KeyError::AlreadyExists(_) => 6,
        KeyError::Unavailable(_) => 14,
    };
    let message = error.message();
    // SAFETY: promised by the caller; the function copies the message.
    unsafe { (*make_error)(code, message.as_ptr().cast(), message.len()) }
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use super::*;

    /// Knows the key `there`, whose value is the timeout in seconds, and panics for the key `panic`.
    struct Few;

    impl KeyValues for Few {
        fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, KeyError> {
            match key {
                "there" => Ok(timeout.as_secs().to_string().into()),
                "panic" => panic!("as asked"),
                late => Err(KeyError::DeadlineExceeded(format!("{late} is late"))),
            }
        }

        fn try_get(&self, key: &str) -> Result<Vec<u8>, KeyError> {
            Err(KeyError::NotFound(key.into()))
        }

        fn put(&self, key: &str, value: &[u8]) -> Result<(), KeyError> {
            match value {
                b"new" => Ok(()),
                _ => Err(KeyError::AlreadyExists(format!("{key} is there"))),
            }
        }
    }

    /// Makes an error that is really a code and a message.
    unsafe extern "C" fn make(code: c_int, message: *const c_char, size: usize) -> *mut ffi::Error {
        // SAFETY: the message has `size` bytes.
        let message = unsafe { text(message, size) };
        Box::into_raw(Box::new((code, message))).cast()
    }

    /// Takes an error apart and frees it.
    fn taken(error: *mut ffi::Error) -> Option<(c_int, String)> {
        // SAFETY: null, or an error of `make` that nobody else has.
        (!error.is_null()).then(|| *unsafe { Box::from_raw(error.cast::<(c_int, String)>()) })
    }

    fn created(callbacks: &Callbacks) -> ffi::Client_Create {
        let mut create = ffi::Client_Create::default();
        callbacks.add_to(&mut create);
        create
    }

    #[test]
    fn values_and_errors_reach_the_plugin() {
        let callbacks = Callbacks::new(&(Arc::new(Few) as Arc<dyn KeyValues>));
        let create = created(&callbacks);
        let make: CallbackError = make;
        let got = |key: &str| {
            // As plugins do: neither the size nor the outputs are set.
            let mut args = MaybeUninit::<KeyValueGetCallback>::uninit();
            let args = args.as_mut_ptr();
            // SAFETY: all inputs are set before the call, and it sets all outputs.
            unsafe {
                (&raw mut (*args).key).write(key.as_ptr().cast());
                (&raw mut (*args).key_size).write(key.len());
                (&raw mut (*args).timeout_in_ms).write(7_000);
                (&raw mut (*args).callback_error).write(&raw const make);
                (&raw mut (*args).user_arg).write(create.kv_get_user_arg);
                let error = create.kv_get_callback.unwrap()(args);
                let value = text((*args).value, (*args).value_size);
                (*args).value_deleter_callback.unwrap()((*args).value);
                (value, taken(error))
            }
        };
        assert_eq!(got("there"), ("7".into(), None));
        assert_eq!(got("other"), (String::new(), Some((4, "other is late".into()))));
        let (value, error) = got("panic");
        assert_eq!((value.as_str(), error.unwrap().0), ("", 14));
    }

    #[test]
    fn each_kind_of_error_has_its_code() {
        let callbacks = Callbacks::new(&(Arc::new(Few) as Arc<dyn KeyValues>));
        let create = created(&callbacks);
        let make: CallbackError = make;
        let mut args = KeyValueTryGetCallback {
            key: c"gone".as_ptr(),
            key_size: 4,
            callback_error: &raw const make,
            user_arg: create.kv_try_get_user_arg,
            ..Default::default()
        };
        // SAFETY: all inputs are set.
        let error = unsafe { create.kv_try_get_callback.unwrap()(&raw mut args) };
        assert_eq!(taken(error), Some((5, "gone".into())));
        assert!(args.value.is_null() && args.value_deleter_callback.is_some());
        let puts = |value: &str| {
            let mut args = KeyValuePutCallback {
                key: c"key".as_ptr(),
                key_size: 3,
                value: value.as_ptr().cast(),
                value_size: value.len(),
                callback_error: &raw const make,
                user_arg: create.kv_put_user_arg,
                ..Default::default()
            };
            // SAFETY: all inputs are set.
            taken(unsafe { create.kv_put_callback.unwrap()(&raw mut args) })
        };
        assert_eq!(puts("new"), None);
        assert_eq!(puts("old"), Some((6, "key is there".into())));
    }
}
