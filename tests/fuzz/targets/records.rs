//! Arrays in NumPy's format, and archives.

use std::io::{Cursor, Write};

use vnca::engine::array::Array;
use vnca::engine::npy::{self, Record};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::Bench;

/// A `.npy` record of any header.
pub fn npy_of(version: u8, header: &str, values: &[u8]) -> Vec<u8> {
    let mut bytes = [npy::MAGIC, &[version, 0]].concat();
    match version {
        1 => bytes.extend((header.len() as u16).to_le_bytes()),
        _ => bytes.extend((header.len() as u32).to_le_bytes()),
    }
    [bytes.as_slice(), header.as_bytes(), values].concat()
}

pub fn npy_file(array: &Array) -> Vec<u8> {
    let mut bytes = Vec::new();
    npy::write(&mut bytes, array).expect("a seed");
    bytes
}

pub fn record_seeds(_: &Bench) -> Vec<Vec<u8>> {
    let header = |descr: &str, fortran: &str, shape: &str| {
        format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n")
    };
    vec![
        npy_file(&Array::new(&[2, 3], &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0])),
        npy_file(&Array::new(&[4], &[1u32, 2, 3, 4])),
        npy_of(1, &header("<f4", "False", "()"), &[0; 4]),
        npy_of(1, &header(">f8", "True", "(2, 1, 2)"), &[64; 32]),
        npy_of(2, &header("<f2", "False", "(3L,)"), &[60; 6]),
        npy_of(3, &header("|u1", "True", "(2, 2)"), &[1, 2, 3, 4]),
        npy_of(1, &header("<i4", "False", "(0, 7)"), &[]),
        npy_of(1, &header("<u4", "True", "(0, 64, 4611686018427387904)"), &[]),
    ]
}

pub fn read_record(_: &Bench, mut bytes: &[u8]) {
    while let Ok(record) = Record::take(&mut bytes) {
        if let Ok(array) = record.array() {
            assert_eq!(array.shape().bytes(), array.bytes().len());
        }
    }
}

/// An archive whose entry has these bytes and the right checksum, which changed archives never get past.
pub fn archive(entry: &str, bytes: &[u8]) -> Vec<u8> {
    zipped(&[(entry, bytes)], CompressionMethod::Stored)
}

pub fn zipped(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in entries {
        zip.start_file(*name, options).expect("a seed");
        zip.write_all(bytes).expect("a seed");
    }
    zip.finish().expect("a seed").into_inner()
}
