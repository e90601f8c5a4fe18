//! Responses of a hub. The input is split at NUL bytes, and each part is sent unchanged as the response to one request.
//! After the last part, the download is cancelled.
#![no_main]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use idefics_fuzz::Folder;
use idefics_hub::{HubOptions, fetch_with};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let server = TcpListener::bind("127.0.0.1:0").expect("a local port is free");
    let address = server.local_addr().expect("the server is bound");
    let folder = Folder::new();
    let mut options = HubOptions::new(format!("http://{address}"), folder.path());
    options.allow_pickles = true;
    let (cancel, is_over) = (options.cancel.clone(), Arc::new(AtomicBool::new(false)));
    thread::scope(|scope| {
        let is_over = &is_over;
        scope.spawn(move || {
            let mut responses = data.split(|&byte| byte == 0);
            for connection in server.incoming() {
                let (Ok(mut connection), false) = (connection, is_over.load(Ordering::Acquire)) else { return };
                let _ = connection.read(&mut [0; 4096]);
                match responses.next() {
                    Some(response) => _ = connection.write_all(response),
                    None => cancel.store(true, Ordering::Release),
                }
            }
        });
        let _ = fetch_with(&options, "org/name", Some("main"), &mut |_| ());
        is_over.store(true, Ordering::Release);
        let _ = std::net::TcpStream::connect(address); // ends the server's wait for a connection
    });
});
