//! Tests image sources: parsing of strings, source policies, and servers that redirect or stall.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use idefics_image::{
    Alpha, FileAccess, ImageError, ImageErrorKind, ImageSource, Limits, ReadOptions, SourcePolicy, UrlAccess, load,
    load_with,
};
use proptest::prelude::*;

fn png() -> Vec<u8> {
    let mut png = Vec::new();
    image::RgbImage::from_pixel(3, 2, image::Rgb([10, 20, 30]))
        .write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png)
        .unwrap();
    png
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn allowing(change: impl FnOnce(&mut SourcePolicy)) -> ReadOptions {
    let mut options = ReadOptions::default();
    change(&mut options.sources);
    options
}

#[test]
fn text_is_base64_unless_a_file_has_this_name() {
    let png = png();
    let text = base64(&png);
    for text in [text.clone(), text.trim_end_matches('=').to_owned(), text.replace('A', "A\n")] {
        let source: ImageSource = text.parse().unwrap();
        assert!(matches!(source, ImageSource::Base64 { .. }));
        assert_eq!(load(&source, &Limits::default(), Alpha::White).unwrap().width(), 3);
    }
    // A file without an extension, whose name could be base64.
    let folder = tempfile::tempdir().unwrap();
    let name = "c".repeat(64);
    let mut source: ImageSource = name.parse().unwrap();
    source.resolve(folder.path());
    let missing = load(&source, &Limits::default(), Alpha::White).unwrap_err();
    assert!(matches!(missing, ImageError::Text { .. }) && missing.kind() == ImageErrorKind::Input, "{missing}");
    assert!(missing.to_string().contains("no file has this name"), "{missing}");
    std::fs::write(folder.path().join(&name), &png).unwrap();
    assert_eq!(source.read(&Limits::default()).unwrap(), png);
    let denied = source.read_with(&allowing(|sources| sources.files = FileAccess::None)).unwrap_err();
    assert!(matches!(denied, ImageError::Text { .. }), "the file must not be looked up: {denied}");

    for path in [
        "photos/cat",
        "cat.png",
        "/data/0123456789012345678901234567890123456789.jpg",
        "photo of my cat, the second one of that day",
    ] {
        assert!(matches!(path.parse().unwrap(), ImageSource::Path(_)), "{path}");
    }
}

#[test]
fn messages_shorten_long_names() {
    for text in ["x".repeat(100_000), format!("{}.png", "x".repeat(100_000)), format!("ftp://{}", "x".repeat(100_000))]
    {
        let error = match text.parse::<ImageSource>() {
            Ok(source) => source.read(&Limits::default()).unwrap_err(),
            Err(error) => error,
        };
        assert!(error.to_string().len() < 600, "{}", error.to_string().len());
    }
    let limits = Limits { max_bytes: 100, ..Limits::default() };
    let error = base64(&png()).repeat(3).parse::<ImageSource>().unwrap().read(&limits).unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Limit);
}

#[test]
fn policy_allows_each_kind_of_source_separately() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.png"), png()).unwrap();
    let sources = || {
        let path = ImageSource::Path(folder.path().join("a.png"));
        let url: ImageSource = "http://127.0.0.1:9/a.png".parse().unwrap();
        let data: ImageSource = format!("data:image/png;base64,{}", base64(&png())).parse().unwrap();
        [path, url, data, base64(&png()).parse().unwrap()]
    };
    let denied = |options: &ReadOptions| {
        sources().map(|source| matches!(source.read_with(options), Err(ImageError::NotAllowed { .. })))
    };
    assert_eq!(denied(&ReadOptions::default()), [false; 4]);
    assert_eq!(denied(&allowing(|sources| *sources = SourcePolicy::data_only())), [true, true, false, false]);
    assert_eq!(denied(&allowing(|sources| sources.files = FileAccess::None)), [true, false, false, false]);
    assert_eq!(denied(&allowing(|sources| sources.urls = UrlAccess::None)), [false, true, false, false]);
    assert_eq!(denied(&allowing(|sources| sources.data = false)), [false, false, true, true]);
    let options = allowing(|sources| *sources = SourcePolicy::data_only());
    let error = sources()[0].read_with(&options).unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Input);
    assert!(error.to_string().contains("a.png: reading files is not allowed"), "{error}");
    assert!(error.to_string().ends_with("allow it with --allow-sources files"), "{error}");
    // Bytes passed by the caller are always allowed.
    assert!(ImageSource::from(png()).read_with(&options).is_ok());
}

#[test]
fn rejects_paths_that_leave_the_allowed_folder() {
    let outside = tempfile::tempdir().unwrap();
    let root = outside.path().join("allowed");
    std::fs::create_dir_all(root.join("sub")).unwrap();
    std::fs::create_dir_all(outside.path().join("allowed-too")).unwrap();
    for file in ["secret.png", "allowed/a.png", "allowed/sub/b.png", "allowed-too/c.png"] {
        std::fs::write(outside.path().join(file), png()).unwrap();
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(outside.path().join("secret.png"), root.join("link.png")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.join("up")).unwrap();
        std::os::unix::fs::symlink("../a.png", root.join("sub/inner.png")).unwrap();
        std::os::unix::fs::symlink(&root, outside.path().join("alias")).unwrap();
    }
    let options = allowing(|sources| sources.files = FileAccess::Below(root.clone()));
    let read = |path: &Path| ImageSource::Path(path.to_owned()).read_with(&options).map(|_| ());
    for inside in ["a.png", "sub/b.png", "sub/../a.png", "./sub/./b.png", "../allowed/a.png"] {
        read(&root.join(inside)).unwrap();
    }
    let mut refused = vec!["../secret.png", "sub/../../secret.png", "../allowed-too/c.png", "../missing.png"];
    if cfg!(unix) {
        read(&root.join("sub/inner.png")).unwrap();
        read(&outside.path().join("alias/a.png")).unwrap();
        refused.extend(["link.png", "up/secret.png"]);
    }
    for path in refused {
        let error = read(&root.join(path)).unwrap_err();
        assert!(matches!(error, ImageError::NotAllowed { .. }), "{path}: {error}");
        assert!(error.to_string().contains("--images-below"), "{error}");
    }
    let missing = read(&root.join("missing.png")).unwrap_err();
    assert!(matches!(missing, ImageError::Read { .. }), "{missing}");
}

/// Starts a server that calls `answer` with the path of each request and the stream to write to. Returns the address of
/// the server, and a list to which it adds the head of each request.
fn serve(answer: impl Fn(&str, &mut TcpStream) + Send + 'static) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let heads = requests.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            heads.lock().unwrap().push(head.clone());
            answer(head.split(' ').nth(1).unwrap_or_default(), &mut stream);
        }
    });
    (address, requests)
}

fn send(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

fn fetch(address: &str, options: &ReadOptions) -> Result<usize, ImageError> {
    let source: ImageSource = address.parse().unwrap();
    source.read_with(options).map(|bytes| bytes.len())
}

#[test]
fn sends_user_agent_and_follows_allowed_redirects() {
    let png = png();
    let (other, at_other) = serve(move |_, stream| send(stream, "200 OK", "", &png));
    let elsewhere = other.replace("127.0.0.1", "localhost");
    let (address, requests) = serve(move |path, stream| match path {
        "/relative" => send(stream, "302 Found", "Location: /away\r\n", b"moved"),
        "/away" => send(stream, "308 Permanent Redirect", &format!("Location: {elsewhere}/a.png\r\n"), b""),
        "/loop" => send(stream, "301 Moved", "Location: /loop\r\n", b""),
        "/file" => send(stream, "301 Moved", "Location: file:///etc/passwd\r\n", b""),
        "/nowhere" => send(stream, "302 Found", "", b""),
        _ => send(stream, "404 Not Found", "", b"<html>"),
    });
    let all = ReadOptions::default();
    let size = fetch(&format!("{other}/a.png"), &all).unwrap();
    assert_eq!(fetch(&format!("{address}/relative"), &all).unwrap(), size);
    let agent = format!("user-agent: idefics/{}\r\n", env!("CARGO_PKG_VERSION"));
    for heads in [&requests, &at_other] {
        assert!(heads.lock().unwrap().iter().all(|head| head.to_ascii_lowercase().contains(&agent)));
    }
    for (path, reason) in [
        ("/loop", "more than 3 redirects"),
        ("/file", "not http(s)"),
        ("/nowhere", "HTTP 302"),
        ("/missing", "HTTP 404"),
    ] {
        let error = fetch(&format!("{address}{path}"), &all).unwrap_err();
        assert!(error.kind() == ImageErrorKind::Network && error.to_string().contains(reason), "{path}: {error}");
    }
    let one_host = allowing(|sources| sources.urls = UrlAccess::Hosts(vec!["127.0.0.1".to_owned()]));
    let before = at_other.lock().unwrap().len();
    assert!(fetch(&format!("{other}/a.png"), &one_host).is_ok());
    let error = fetch(&format!("{address}/relative"), &one_host).unwrap_err();
    assert!(matches!(&error, ImageError::NotAllowed { image, .. } if image.contains("localhost")), "{error}");
    assert_eq!(at_other.lock().unwrap().len(), before + 1, "the other host must not be contacted again");
}

#[test]
fn cancelling_does_not_wait_for_the_server() {
    let (address, requests) = serve(|path, stream| {
        if path == "/stalls" {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc");
        }
        std::thread::sleep(Duration::from_secs(8));
    });
    for path in ["/silent", "/stalls"] {
        let cancel = Arc::new(AtomicBool::new(false));
        let mut options = ReadOptions::default();
        options.cancel = Some(cancel.clone());
        let url = format!("{address}{path}");
        let fetching = std::thread::spawn(move || fetch(&url, &options));
        if path == "/silent" {
            while requests.lock().unwrap().is_empty() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let asked = Instant::now();
        cancel.store(true, Ordering::Relaxed);
        let error = fetching.join().unwrap().unwrap_err();
        // The server answers after 8 s, and the time limit is 10 s.
        assert!(asked.elapsed() < Duration::from_secs(5), "{path}: {:?}", asked.elapsed());
        assert!(matches!(error, ImageError::Cancelled { .. }) && error.kind() == ImageErrorKind::Cancelled, "{error}");
    }
    let mut options = ReadOptions::default();
    options.cancel = Some(Arc::new(AtomicBool::new(true)));
    assert!(matches!(ImageSource::from(png()).read_with(&options), Err(ImageError::Cancelled { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_string_is_a_source_or_an_error(text in prop_oneof![
        any::<String>(),
        "[A-Za-z0-9+/=\n]{0,120}",
        "data:[a-z/;,]{0,20}[A-Za-z0-9+/=]{0,60}",
    ]) {
        if let Ok(source) = text.parse::<ImageSource>() {
            let data = allowing(|sources| *sources = SourcePolicy::data_only());
            match load_with(&source, &data, Alpha::White) {
                Ok(_) => prop_assert!(!matches!(source, ImageSource::Path(_) | ImageSource::Url(_))),
                Err(error) => {
                    prop_assert!(error.to_string().lines().count() <= 1 + text.matches('\n').count(), "{error}");
                }
            }
        }
    }

    #[test]
    fn base64_round_trips(bytes in prop::collection::vec(any::<u8>(), 30..200)) {
        let file = [b"\x89PNG\r\n\x1a\n".as_slice(), &bytes].concat();
        let plain: ImageSource = base64(&file).parse().unwrap();
        prop_assert_eq!(plain.read(&Limits::default()).unwrap().into_owned(), file.clone());
        let url: ImageSource = format!("data:image/avif;base64,{}", base64(&file)).parse().unwrap();
        prop_assert_eq!(url.read(&Limits::default()).unwrap().into_owned(), file);
    }
}
