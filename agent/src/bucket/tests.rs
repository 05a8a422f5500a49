//! What of a place and of an answer is told.

use super::*;

fn open(url: &str) -> Result<Bucket, BucketError> {
    Bucket::open(&Ship { url: url.to_owned(), ..Ship::default() })
}

#[test]
fn a_place_that_is_none_is_refused_with_what_would_do() {
    for (url, word) in [
        ("nowhere", "s3://"),
        ("s3:///prefix", "names no bucket"),
        ("ftp://a/b", "no kind of bucket"),
        ("file:///does/not/exist", "there is no folder /does/not/exist"),
    ] {
        let error = open(url).expect_err("must be refused").to_string();
        assert!(error.contains(word) && error.contains(url), "{error}");
    }
    let settings = Ship { url: "s3://b".into(), ca_file: "/does/not/exist.pem".into(), ..Ship::default() };
    let error = Bucket::open(&settings).expect_err("must be refused").to_string();
    assert!(error.contains("/does/not/exist.pem") && error.contains("ship.ca_file"), "{error}");
}

#[test]
fn an_answer_is_told_on_one_line_with_its_mend() {
    let of = |text: &str| {
        words(&Error::Generic {
            store: "S3",
            source: format!("<Error>\n <Code>{text}</Code></Error>").into(),
        })
    };
    assert!(of("NoSuchBucket").contains("make it"), "{}", of("NoSuchBucket"));
    assert!(of("RequestTimeTooSkewed").contains("clock"), "{}", of("RequestTimeTooSkewed"));
    assert!(of("ExpiredToken").contains("renew"), "{}", of("ExpiredToken"));
    assert!(!of("SlowDown").contains('\n'));
    let long = Error::Generic { store: "S3", source: "x".repeat(5000).into() };
    assert!(words(&long).len() < 1000);
    let not_found = |text: &str| BucketError::Request {
        verb: "read",
        at: "s3://b/x".into(),
        source: Error::NotFound { path: "x".into(), source: text.to_owned().into() },
    };
    assert!(not_found("NoSuchKey").is_not_found());
    assert!(
        !not_found("NoSuchBucket").is_not_found(),
        "a bucket that is gone is no file that was never there"
    );
}
