//! What is fuzzed: every reader of bytes that come from elsewhere, with small valid inputs to begin from. Two drivers use it:
//! the test beside it, which changes these inputs at random, and `tools/fuzz-targets`, which a run's coverage guides.

use std::fs;
use std::path::{Path, PathBuf};

use images::{
    amat_seeds, data_seeds, font_seeds, gz_seeds, idx_seeds, image_file_seeds, image_seeds, npz_image_seeds,
    read_amat, read_font, read_gz, read_idx, read_image_file, read_npy_images, read_npz_images, read_table,
    read_verify, table_seeds,
};
use programs::{
    answer_seeds, kept_seeds, module_seeds, program_seeds, read_answer, read_kept, read_module, read_program,
    read_text, text_seeds,
};
use records::{read_record, record_seeds};
use runs::{
    checkpoint_seeds, config_seeds, meta_seeds, metrics_seeds, part_seeds, read_checkpoint, read_config,
    read_meta, read_metrics, read_part, read_toml, toml_seeds,
};
use tempfile::TempDir;
use weights::{
    eqx_seeds, npz_seeds, read_eqx, read_npz, read_npz_entry, read_safetensors, safetensors_seeds,
};

#[path = "targets/images.rs"]
mod images;
#[path = "targets/programs.rs"]
mod programs;
#[path = "targets/records.rs"]
mod records;
#[path = "targets/runs.rs"]
mod runs;
#[path = "targets/weights.rs"]
pub mod weights;

#[allow(dead_code, missing_docs)]
#[path = "../../src/engine/lower/placeholders.rs"]
mod placeholders;

#[path = "../common/fonts.rs"]
mod fonts;

/// A reader under test.
pub struct Target {
    /// The name, which the drivers print.
    pub name: &'static str,
    /// The longest input. Unpacked, a gzip stream may be a thousand times as long.
    pub longest: usize,
    /// Valid inputs.
    pub seeds: fn(&Bench) -> Vec<Vec<u8>>,
    /// Reads an input and uses what was read as the program does. Whether it is refused does not matter.
    pub read: fn(&Bench, &[u8]),
}

/// A folder for inputs that are read as files.
pub struct Bench {
    folder: TempDir,
}

impl Bench {
    /// Makes one, in memory where there is a place for it.
    pub fn new() -> Bench {
        let memory = Path::new("/dev/shm");
        let folder = tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir());
        Bench { folder: folder.expect("a folder for temporary files") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file; returns its path.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("a temporary file");
        path
    }

    /// What a function writes to a file of this name.
    fn written(&self, name: &str, write: impl FnOnce(&Path) -> anyhow::Result<()>) -> Vec<u8> {
        let path = self.path(name);
        write(&path).expect("a seed");
        fs::read(&path).expect("a seed")
    }
}

const LONGEST: usize = 1 << 14;

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "npy-record", longest: LONGEST, seeds: record_seeds, read: read_record },
    Target { name: "npy-images", longest: LONGEST, seeds: image_seeds, read: read_npy_images },
    Target { name: "idx", longest: LONGEST, seeds: idx_seeds, read: read_idx },
    Target { name: "amat", longest: LONGEST, seeds: amat_seeds, read: read_amat },
    Target { name: "table", longest: LONGEST, seeds: table_seeds, read: read_table },
    Target { name: "npz-images", longest: LONGEST, seeds: npz_image_seeds, read: read_npz_images },
    Target { name: "gz", longest: 1 << 12, seeds: gz_seeds, read: read_gz },
    Target { name: "image-file", longest: LONGEST, seeds: image_file_seeds, read: read_image_file },
    Target { name: "font", longest: LONGEST, seeds: font_seeds, read: read_font },
    Target { name: "data-verify", longest: 1 << 12, seeds: data_seeds, read: read_verify },
    Target { name: "npz", longest: LONGEST, seeds: npz_seeds, read: read_npz },
    Target { name: "npz-entry", longest: LONGEST, seeds: record_seeds, read: read_npz_entry },
    Target { name: "safetensors", longest: LONGEST, seeds: safetensors_seeds, read: read_safetensors },
    Target { name: "eqx", longest: LONGEST, seeds: eqx_seeds, read: read_eqx },
    Target { name: "checkpoint", longest: LONGEST, seeds: checkpoint_seeds, read: read_checkpoint },
    Target { name: "checkpoint-meta", longest: LONGEST, seeds: meta_seeds, read: read_meta },
    Target { name: "metrics", longest: LONGEST, seeds: metrics_seeds, read: read_metrics },
    Target { name: "config-toml", longest: LONGEST, seeds: toml_seeds, read: read_toml },
    Target { name: "config-json", longest: LONGEST, seeds: config_seeds, read: read_config },
    Target { name: "eval-part", longest: LONGEST, seeds: part_seeds, read: read_part },
    Target { name: "program", longest: LONGEST, seeds: program_seeds, read: read_program },
    Target { name: "module-text", longest: LONGEST, seeds: text_seeds, read: read_text },
    Target { name: "module-proto", longest: LONGEST, seeds: module_seeds, read: read_module },
    Target { name: "module-answer", longest: LONGEST, seeds: answer_seeds, read: read_answer },
    Target { name: "kept-program", longest: LONGEST, seeds: kept_seeds, read: read_kept },
];
