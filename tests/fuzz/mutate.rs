//! Changes inputs at random, as damage and malice do: bits, lengths, numbers.

/// Random numbers: a seed gives the same ones everywhere.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        // The generator splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn stretch(&mut self, length: usize) -> (usize, usize) {
        let from = self.below(length);
        let most = [4, 64, length][self.below(3)].min(length - from);
        (from, from + self.below(most + 1))
    }
}

/// Numbers at which sizes and products of sizes overflow, and forms that are read in more than one way.
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "2",
    "64",
    "255",
    "1000",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "1099511627776",
    "4611686018427387904",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "340282366920938463463374607431768211455",
    "1e308",
    "1e-320",
    "1e999",
    "-0.0",
    "nan",
    "inf",
    "null",
    "[]",
    "\"\"",
];

const INTEGERS: &[u64] = &[
    0,
    1,
    2,
    28,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_fff0,
    u64::MAX,
];

/// Makes one change.
pub fn change(random: &mut Random, bytes: &mut Vec<u8>, longest: usize) {
    let length = bytes.len();
    let at = random.below(length);
    match random.below(10) {
        0 if length > 0 => bytes[at] ^= 1 << random.below(8),
        1 if length > 0 => bytes[at] = random.next() as u8,
        2 if length > 0 => {
            let (from, to) = random.stretch(length);
            bytes.drain(from..to);
        }
        3 if length > 0 => {
            let (from, to) = random.stretch(length);
            let copy = bytes[from..to].to_vec();
            bytes.splice(at..at, copy);
        }
        4 if length > 0 => bytes.truncate(at),
        // Numbers in text are likelier where they are than where random places are.
        5..=7 if length > 0 => {
            let is_number = |b: &u8| b.is_ascii_digit();
            let Some(from) = bytes[at..].iter().position(is_number).map(|p| at + p) else { return };
            let to = bytes[from..].iter().position(|b| !is_number(b)).map_or(length, |p| from + p);
            let other = random.pick(NUMBERS).bytes();
            bytes.splice(from..to, other);
        }
        8 => {
            let number = random.pick(INTEGERS);
            let width = random.pick(&[1, 2, 4, 8]);
            let number = match random.below(2) {
                0 => number.to_le_bytes()[..width].to_vec(),
                _ => number.to_be_bytes()[8 - width..].to_vec(),
            };
            let to = (at + width).min(length);
            bytes.splice(at..to, number);
        }
        _ => {
            let count = random.below(4) + 1;
            let new: Vec<u8> = (0..count).map(|_| random.next() as u8).collect();
            bytes.splice(at..at, new);
        }
    }
    bytes.truncate(longest);
}

/// Makes some changes.
pub fn changed(random: &mut Random, seed: &[u8], longest: usize) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(6) {
        change(random, &mut bytes, longest);
    }
    bytes
}
