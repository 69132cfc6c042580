//! Devices of a plugin: training gives the same results as on the CPU, and the error for an unavailable device contains advice. A
//! small plugin, compiled here, fails in the same ways as real ones.

#[path = "common/cli.rs"]
mod cli;
#[path = "common/plugin.rs"]
mod plugin;

use std::path::{Path, PathBuf};
use std::process::Command;

use vnca::engine::runtime::{Device, Mesh};

/// Compiles a plugin with `slots` functions and version `major`.1, whose client fails with `message`.
fn broken(folder: &Path, major: i32, slots: usize, message: &str) -> PathBuf {
    let text = format!(
        r#"#include <stddef.h>
        #include <string.h>
        struct message {{ size_t size; void *ext; void *error; const char *text; size_t length; }};
        struct api {{ size_t size; void *ext; size_t vsize; void *vext; int major, minor; void *slot[120]; }};
        static int anything;
        static void destroy(void *args) {{}}
        static void tell(struct message *m) {{ m->text = "{message}"; m->length = strlen(m->text); }}
        static void *ok(void *args) {{ return NULL; }}
        static void *fail(void *args) {{ return &anything; }}
        static struct api api;
        const struct api *GetPjrtApi(void) {{
            api.size = offsetof(struct api, slot) + {slots} * sizeof(void *);
            api.major = {major}; api.minor = 1;
            for (int i = 0; i < 120; i++) api.slot[i] = (void *)fail;
            api.slot[0] = (void *)destroy; api.slot[1] = (void *)tell; api.slot[3] = (void *)ok;
            return &api;
        }}"#
    );
    let (source, library) = (folder.join("plugin.c"), folder.join("plugin.so"));
    std::fs::write(&source, text).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-w", "-o"]).arg(&library).arg(&source);
    assert!(cc.status().expect("a C compiler exists, because Rust links with it").success());
    library
}

fn refused(device: &str) -> String {
    let device: Device = device.parse().expect("it is the name of a device");
    format!("{:#}", Mesh::open(&device, 1).err().expect("the device is not available"))
}

#[test]
fn a_plugin_that_does_not_fit_is_refused_with_versions_and_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = broken(folder.path(), 7, 120, "");
    let error = refused(path.to_str().unwrap());
    assert!(
        error.contains("plugin.so speaks version 7.1 of the PJRT API, this program version 0."),
        "{error}"
    );

    let folder = tempfile::tempdir().unwrap();
    let path = broken(folder.path(), 0, 4, "");
    let error = refused(path.to_str().unwrap());
    assert!(error.contains("plugin.so has no PJRT_Client_Create: it speaks version 0.1"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.so");
    std::fs::write(&file, "no library").unwrap();
    let error = refused(file.to_str().unwrap());
    assert!(error.contains("cannot load the PJRT plugin") && error.contains("text.so"), "{error}");
}

#[test]
fn the_error_for_a_busy_device_contains_advice() {
    let folder = tempfile::tempdir().unwrap();
    let message = "ABORTED: The TPU is already in use by process with pid 77";
    let path = broken(folder.path(), 0, 120, message);
    let error = refused(path.to_str().unwrap());
    for part in ["plugin.so cannot open a device", "libtpu_lockfile", "PJRT_Client_Create: ABORTED", "pid 77"]
    {
        assert!(error.contains(part), "{part} is missing: {error}");
    }
}

#[test]
fn names_of_devices() {
    for name in ["cpu", "tpu", "cuda", "/a/plugin.so"] {
        assert_eq!(name.parse::<Device>().unwrap().to_string(), name);
    }
    for (name, part) in [
        ("gpu", "use cpu, tpu, cuda"),
        ("cpu,a=1", "cpu has no options"),
        ("tpu,a", "\"a\" is no option of the form NAME=VALUE"),
        ("tpu,a=1,a=2", "a is given twice"),
    ] {
        let error = name.parse::<Device>().unwrap_err().to_string();
        assert!(error.contains(part), "{name}: {error}");
    }
}

#[test]
fn an_unavailable_device_leaves_no_run_behind() {
    let folder = tempfile::tempdir().unwrap();
    let error = cli::fail(folder.path(), &["train", "--latent", "8", "--device", "no/such.so"], 4);
    assert!(error.contains("no/such.so"), "{error}");
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn training_on_a_plugin_equals_training_on_the_cpu() {
    let Some(device) = plugin::device() else { return };
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    let train = |out: &str, device: &str| {
        let data = data.to_str().unwrap();
        let fixed = [
            "train",
            "--latent",
            "8",
            "--data",
            data,
            "--batch-size",
            "8",
            "--steps",
            "4",
            "--replicas",
            "2",
        ];
        let more = ["--eval-every", "0", "--out", out, "--device", device];
        cli::succeed(folder.path(), &[&fixed[..], &more[..]].concat());
        cli::metrics(&folder.path().join(out))
    };
    let (cpu, other) = (train("cpu", "cpu"), train("plugin", &device));
    for (a, b) in cpu.iter().zip(&other) {
        for field in ["loss", "grad_norm"] {
            let (a, b) = (a[field].as_f64().unwrap(), b[field].as_f64().unwrap());
            assert!((a - b).abs() <= 1e-4 * a.abs(), "{field}: {b}, not {a}");
        }
    }
    assert_eq!((cpu.len(), other.len()), (4, 4));
}

#[test]
fn a_second_run_on_a_plugin_reuses_compiled_programs_with_equal_results() {
    let Some(device) = plugin::device() else { return };
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    let cache = folder.path().join("cache");
    let train = |out: &str| {
        let more = format!("--steps 4 --replicas 2 --eval-every 0 --device {device}");
        let mut arguments = cli::training(&data, &more);
        arguments[2] = out.into();
        let mut run = cli::vnca(folder.path(), &arguments);
        let run = run.env("VNCA_COMPILATION_CACHE", &cache).env("RUST_LOG", "vnca=info").output().unwrap();
        let said = cli::text(&run.stderr);
        assert!(run.status.success(), "{said}");
        (std::fs::read(folder.path().join(out).join("metrics.jsonl")).unwrap(), said)
    };
    let files = || {
        let mut files: Vec<_> = std::fs::read_dir(&cache).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        files
    };
    let ((first, said), kept) = (train("first"), files());
    assert!(!kept.is_empty() && !said.contains("loaded the compiled"), "{kept:?} {said}");
    let (second, said) = train("second");
    assert_eq!(said.matches("loaded the compiled").count(), kept.len(), "{said}");
    assert!(first == second && files() == kept);
    for file in &kept {
        let bytes = std::fs::read(file).unwrap();
        std::fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    }
    let (third, said) = train("third");
    assert_eq!(said.matches("is damaged").count(), kept.len(), "{said}");
    assert!(first == third && files() == kept);
}
