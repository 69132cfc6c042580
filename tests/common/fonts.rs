//! Fonts of pictures.

/// Builds a font whose glyph i + 1 is the picture i, for the character U+1F600 + i.
pub fn font(pictures: &[Vec<u8>]) -> Vec<u8> {
    let n = pictures.len() as u16;
    let be16 = |values: &[u16]| values.iter().flat_map(|v| v.to_be_bytes()).collect::<Vec<u8>>();
    let be32 = |values: &[u32]| values.iter().flat_map(|v| v.to_be_bytes()).collect::<Vec<u8>>();
    let mut head = vec![0; 54];
    head[..4].copy_from_slice(&be32(&[0x10000]));
    head[12..16].copy_from_slice(&be32(&[0x5f0f_3cf5]));
    head[18..20].copy_from_slice(&be16(&[1024]));
    let mut hhea = vec![0; 36];
    hhea[..4].copy_from_slice(&be32(&[0x10000]));
    hhea[35] = 1;
    let maxp = [be32(&[0x5000]), be16(&[n + 1])].concat();
    let group = be32(&[28, 0, 1, 0x1f600, 0x1f600 + u32::from(n) - 1, 1]);
    let cmap = [be16(&[0, 1, 3, 10]), be32(&[12]), be16(&[12, 0]), group].concat();
    let (mut data, mut offsets) = (be32(&[0x30000]), vec![0]);
    for picture in pictures {
        data.extend([64, 64, 0, 0, 64]);
        data.extend(be32(&[picture.len() as u32]));
        data.extend(picture);
        offsets.push(data.len() as u32 - 4);
    }
    let index = [be16(&[1, n]), be32(&[8]), be16(&[1, 17]), be32(&[4]), be32(&offsets)].concat();
    let strike =
        [be32(&[56, index.len() as u32, 1, 0]), vec![0; 24], be16(&[1, n]), vec![64, 64, 32, 1]].concat();
    let places = [be32(&[0x30000, 1]), strike, index].concat();
    let tables = [
        (b"CBDT", data),
        (b"CBLC", places),
        (b"cmap", cmap),
        (b"head", head),
        (b"hhea", hhea),
        (b"maxp", maxp),
    ];
    let mut bytes = [be32(&[0x10000]), be16(&[tables.len() as u16, 0, 0, 0])].concat();
    let mut at = 12 + 16 * tables.len();
    for (tag, table) in &tables {
        bytes.extend(*tag);
        bytes.extend(be32(&[0, at as u32, table.len() as u32]));
        at += table.len().next_multiple_of(4);
    }
    for (_, table) in tables {
        bytes.extend(&table);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}
