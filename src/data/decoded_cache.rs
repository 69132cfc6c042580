//! Decoded images on disk, so that a later run need not decode them.
//!
//! A file's name is a hash of what the images were made from. Its content is a magic line, the length of a description, the
//! description as JSON, the bytes, and a checksum of all that. A file that is not as expected is ignored and written again.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files;

const MAGIC: &[u8] = b"vnca images 1\n";
const CHECKSUM_BYTES: usize = 4;

/// Returns the description and the bytes in a file; `None` if it is absent, damaged or of another kind.
pub fn read<D: DeserializeOwned>(path: &Path) -> Option<(D, Vec<u8>)> {
    let mut content = fs::read(path).ok()?;
    let body = content.len().checked_sub(CHECKSUM_BYTES)?;
    let checksum = crc32fast::hash(&content[..body]).to_le_bytes();
    if content[body..] != checksum {
        return None;
    }
    let rest = content[..body].strip_prefix(MAGIC)?;
    let (length, rest) = rest.split_first_chunk()?;
    let (description, bytes) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let description = serde_json::from_slice(description).ok()?;
    let start = body - bytes.len();
    content.truncate(body);
    content.drain(..start);
    Some((description, content))
}

/// Writes a description and bytes to a file, and creates its folder.
///
/// # Errors
/// When the file cannot be written. The message names it.
pub fn write(path: &Path, description: &impl Serialize, bytes: &[u8]) -> Result<()> {
    let description = serde_json::to_vec(description)?;
    let length = u32::try_from(description.len())?.to_le_bytes();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    files::write(path, |out| {
        let mut checksum = crc32fast::Hasher::new();
        for part in [MAGIC, &length, &description, bytes] {
            checksum.update(part);
            out.write_all(part)?;
        }
        Ok(out.write_all(&checksum.finalize().to_le_bytes())?)
    })
}
