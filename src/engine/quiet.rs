//! What the XLA library says on stderr by itself.

/// Keeps the messages of the XLA library off the terminal, but for those with which it ends the process. The setting is XLA's own
/// and holds for the process. Plugins have settings of their own: they read TF_CPP_MIN_LOG_LEVEL from the environment.
pub fn hush() {
    #[cfg(feature = "xla")]
    xla::set_min_log_level(xla::TfLogLevel::Fatal);
}
