//! The engine ends at any moment without holding up its process.

use std::sync::mpsc;
use std::time::Duration;

use sluice_storage::Lane;
use sluice_storage::testing::{Fault, Times};

use crate::bench::{Bench, prefetch};

#[test]
fn a_runtime_ends_while_ranges_are_under_way_and_more_are_queued() {
    let (ended, has_ended) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let (bench, layer) = runtime.block_on(async {
            let bench = Bench::new(200, 1000, 70_000);
            bench
                .blob
                .inject(Fault::Latency(Duration::from_secs(3600)), Times::Always);
            let layer = bench.layer();
            prefetch(&layer, 0..200, Lane::Profile);
            tokio::time::sleep(Duration::from_millis(20)).await;
            (bench, layer)
        });
        drop(runtime);
        // Whoever still wants something then gets nothing, and is not held up either.
        prefetch(&layer, 0..200, Lane::Fill);
        drop((layer, bench));
        ended.send(()).expect("the test waits");
    });
    let patience = Duration::from_secs(60);
    has_ended.recv_timeout(patience).expect("the runtime ends");
}
