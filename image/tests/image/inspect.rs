//! What `vctl inspect` prints, compared with what it printed when a person looked at it.

use std::fs;

use vrun_image::{PAGE, Report, Writer, inspect};

use crate::jobs::{small, small_image};

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1.txt");
const JSON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1.json");

fn json(report: &Report) -> String {
    serde_json::to_string_pretty(report).unwrap() + "\n"
}

#[test]
fn the_golden_image_is_described_as_before() {
    let report = inspect(&small_image()[..]).unwrap();
    assert_eq!(report.to_string(), fs::read_to_string(TEXT).unwrap());
    assert_eq!(json(&report), fs::read_to_string(JSON).unwrap());
}

#[test]
#[ignore = "writes the golden descriptions: look at the difference before committing it"]
fn write_golden() {
    let report = inspect(&small_image()[..]).unwrap();
    fs::write(TEXT, report.to_string()).unwrap();
    fs::write(JSON, json(&report)).unwrap();
}

#[test]
fn a_page_that_is_stored_twice_counts_once() {
    let mut writer = Writer::new(Vec::new()).unwrap();
    writer.job(&small()).unwrap();
    for start in [0x60_1000, 0x60_0000, 0x60_1000] {
        writer.pages(0, start, &[0; 2 * PAGE as usize]).unwrap();
    }
    for offset in [0, 2] {
        writer.file(1, offset, b"abc").unwrap();
    }
    let (image, totals) = writer.finish().unwrap();
    assert_eq!((totals.page_bytes, totals.file_bytes), (6 * PAGE, 6));
    let report = serde_json::to_value(inspect(&image[..]).unwrap()).unwrap();
    assert_eq!(report["stored_bytes"], 3 * PAGE);
    assert_eq!(report["processes"][0]["areas"][2]["stored_bytes"], 3 * PAGE);
    assert_eq!(report["file_bytes"], 5);
    assert_eq!(report["image_bytes"], image.len());
}
