//! The attributes of a TPU machine of Google Compute Engine, which say which host of a pod slice it is.

use std::time::Duration;

/// The server of the attributes, unless `GCE_METADATA_HOST` names another.
const SERVER: &str = "metadata.google.internal";

/// Time after which a machine without attributes is given up.
const PATIENCE: Duration = Duration::from_secs(2);

/// The attributes that [`find`](crate::hosts::found::find) asks for.
const KNOWN: [&str; 3] = ["agent-worker-number", "worker-network-endpoints", "tpu-env"];

/// The attributes of this machine.
pub struct Metadata {
    server: Option<String>,
}

impl Metadata {
    /// Returns the attributes of this machine, which has some if it is one of Google Compute Engine with a TPU.
    pub fn new(has_tpu: bool) -> Metadata {
        let named = std::env::var("GCE_METADATA_HOST").ok().filter(|name| !name.is_empty());
        let product = std::fs::read_to_string("/sys/class/dmi/id/product_name").unwrap_or_default();
        let of_google = product.trim() == "Google Compute Engine";
        let server = named.or_else(|| of_google.then(|| SERVER.to_string()));
        Metadata { server: server.filter(|_| has_tpu) }
    }

    /// Returns an attribute by its name.
    pub fn get(&self, name: &str) -> Option<String> {
        let server = self.server.as_ref().filter(|_| KNOWN.contains(&name))?;
        let url = format!("http://{server}/computeMetadata/v1/instance/attributes/{name}");
        let agent =
            ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).proxy(None).build().new_agent();
        let answer = agent.get(&url).header("Metadata-Flavor", "Google").call();
        match answer.and_then(|mut answer| answer.body_mut().read_to_string()) {
            Ok(text) => Some(text),
            Err(error) => {
                log::info!("{url}: {error}");
                None
            }
        }
    }
}
