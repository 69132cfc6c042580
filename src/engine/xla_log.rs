//! The messages that the XLA library writes to stderr.

/// Hides all messages of the XLA library except fatal ones.
///
/// The setting is XLA's own and applies to the whole process. Plugins do not use it: they read `TF_CPP_MIN_LOG_LEVEL` from the
/// environment. Without the feature `xla` this function does nothing.
pub fn hide_messages() {
    #[cfg(feature = "xla")]
    xla::set_min_log_level(xla::TfLogLevel::Fatal);
}
