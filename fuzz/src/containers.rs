//! Builds small valid image files that contain a block of metadata.

/// Returns files that contain `data` as EXIF and as XMP in JPEG, PNG and WebP, and as a raw EXIF profile in PNG text
/// chunks.
pub fn with_metadata(data: &[u8]) -> Vec<Vec<u8>> {
    let exif = [b"Exif\0\0", data].concat();
    let xmp = [b"http://ns.adobe.com/xap/1.0/\0", data].concat();
    let hex: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
    let profile = format!("\nexif\n{:8}\n{hex}\n", data.len());
    vec![
        jpeg(&exif),
        jpeg(&xmp),
        png(b"eXIf", data),
        png(b"iTXt", &[b"XML:com.adobe.xmp\0\0\0\0\0", data].concat()),
        png(b"tEXt", &[b"Raw profile type exif\0", profile.as_bytes()].concat()),
        png(b"zTXt", &[b"Raw profile type exif\0\0", data].concat()),
        webp(b"EXIF", data),
        webp(b"XMP ", data),
    ]
}

/// Builds a greyscale JPEG of 8×8 pixels with an APP1 segment.
fn jpeg(app1: &[u8]) -> Vec<u8> {
    let app1 = &app1[..app1.len().min(65_533)];
    let length = (app1.len() as u16 + 2).to_be_bytes();
    let mut file = [&[0xff, 0xd8, 0xff, 0xe1], &length[..], app1].concat();
    file.extend([0xff, 0xdb, 0, 67, 0]);
    file.extend([1; 64]);
    file.extend([0xff, 0xc0, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0]);
    for class in [0x00, 0x10] {
        // A Huffman table with a single code: `0` for the symbol 0.
        file.extend([0xff, 0xc4, 0, 20, class, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    file.extend([0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0, 0x3f, 0xff, 0xd9]);
    file
}

/// Builds a greyscale PNG of one pixel, with a chunk before the image data.
fn png(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let header = [0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0];
    // A zlib stream with one stored block: a filter byte and a pixel.
    let pixels = [0x78, 0x01, 0x01, 2, 0, 0xfd, 0xff, 0, 7, 0, 9, 0, 8];
    let chunks: [(&[u8; 4], &[u8]); 4] = [(b"IHDR", &header), (kind, data), (b"IDAT", &pixels), (b"IEND", &[])];
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in chunks {
        file.extend((data.len() as u32).to_be_bytes());
        let start = file.len();
        file.extend_from_slice(kind);
        file.extend_from_slice(data);
        let checksum = crc32(&file[start..]);
        file.extend(checksum.to_be_bytes());
    }
    file
}

/// Builds a lossless WebP of one pixel, with a chunk after the image data.
fn webp(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let flags = if kind == b"EXIF" { 8 } else { 4 };
    let extended = [flags, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let pixels = [0x2f, 0, 0, 0, 0, 7, 0x50, 0xf5, 0x7f, 0xfa, 0x88, 0x88, 0xfe, 7];
    let mut body = b"WEBP".to_vec();
    for (kind, data) in [(b"VP8X", &extended[..]), (b"VP8L", &pixels), (kind, data)] {
        body.extend_from_slice(kind);
        body.extend((data.len() as u32).to_le_bytes());
        body.extend_from_slice(data);
        body.extend(&[0; 1][..data.len() % 2]);
    }
    [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat()
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}
