//! What a start will read of the files that its command names, and of the modules that those import.
//!
//! An interpreter finds one module after the other, each behind a round trip. Their names stand in the module that imports them, so all modules that
//! a file leads to are looked for as soon as the file itself is here, in waves instead of one by one. See [`sluice_format::startup`].

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sluice_format::startup::{FilePlace, Module, ModuleForm, interpreter_of, is_python};
use tokio::runtime::Handle;

use super::Lane;
use super::files::Files;
use super::loader::{self, Code, HEAD_LEN};

/// Longest module or script that is looked into, in bytes.
const LONGEST: u64 = 2 << 20;

/// Has fetched what the start of an image reads first, and what that leads to.
pub(crate) fn begin(files: &Arc<Files>, runtime: &Handle) {
    for place in files.places.first() {
        runtime.spawn(look_into(files.clone(), *place));
    }
}

/// Has fetched what a file leads to that is run: a program, a module, or a script for another program.
fn look_into(files: Arc<Files>, place: FilePlace) -> BoxFuture<'static, Option<()>> {
    async move {
        if let Some(module) = files.places.module_at(place.device, place.plain_off) {
            return follow(files, module).await;
        }
        let (opened, met) = files.open(place, Lane::Readahead)?;
        let head = opened.gather(0..place.len.min(HEAD_LEN)).await?;
        if let Some(program) = met.meet_program(place.plain_off, &head, Code::Whole) {
            loader::fetch_ahead(opened, Some(files), program).await;
            return Some(());
        }
        let interpreter = interpreter_of(&head)?;
        for first in files.places.interpreter(interpreter) {
            tokio::spawn(look_into(files.clone(), first));
        }
        if is_python(interpreter) && place.len <= LONGEST {
            let script = opened.gather(0..place.len).await?;
            for module in files.places.script_imports(&script) {
                tokio::spawn(follow(files.clone(), module));
            }
        }
        Some(())
    }
    .boxed()
}

/// Has fetched a module, unless it was met before, and all that it imports.
pub(crate) fn follow(files: Arc<Files>, module: Module) -> BoxFuture<'static, Option<()>> {
    async move {
        let place = module.place;
        if module.form == ModuleForm::Extension {
            return loader::fetch_library(files, place, Lane::Profile, Code::Touched).await;
        }
        let (opened, met) = files.open(place, Lane::Profile)?;
        if place.len > LONGEST || !met.meet(place.plain_off) || !files.spend_on_modules(place.len) {
            return None;
        }
        let file = opened.gather(0..place.len).await?;
        for import in files.imports(module, file).await? {
            tokio::spawn(follow(files.clone(), import));
        }
        Some(())
    }
    .boxed()
}
