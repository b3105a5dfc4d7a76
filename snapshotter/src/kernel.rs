//! What overlayfs needs to be told on this host.

use std::fs;
use std::path::Path;

/// The directory of overlayfs's module parameters; a parameter that is missing here is an option the kernel refuses.
const PARAMETERS: &str = "/sys/module/overlay/parameters";

/// The map of a process that is in no user namespace.
const WHOLE_MAP: [&str; 3] = ["0", "0", "4294967295"];

/// The options of every overlay: the operator's, and those that the host needs unless the operator decided otherwise.
pub(crate) fn overlay_options(operator: &[String]) -> Vec<String> {
    let knows_index = Path::new(PARAMETERS).join("index").exists();
    let id_map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    complete(operator, knows_index, in_user_namespace(&id_map))
}

fn complete(operator: &[String], knows_index: bool, in_user_namespace: bool) -> Vec<String> {
    let mut options = operator.to_vec();
    let given = |key: &str| {
        operator
            .iter()
            .any(|option| option.split('=').next() == Some(key))
    };
    // Only user.* attributes can be written there, so whiteouts and opaque directories need that form.
    if in_user_namespace && !given("userxattr") {
        options.push("userxattr".to_owned());
    }
    // With an index, an upper directory is bound to its lowers, and containerd mounts the same upper again on others.
    if knows_index && !given("index") {
        options.push("index=off".to_owned());
    }
    options
}

fn in_user_namespace(id_map: &str) -> bool {
    !id_map.is_empty() && id_map.split_ascii_whitespace().ne(WHOLE_MAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_adds_what_the_operator_left_open() {
        let operator = |options: &[&str]| options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>();
        assert_eq!(complete(&[], true, false), ["index=off"]);
        assert_eq!(complete(&[], false, false), [""; 0]);
        assert_eq!(complete(&[], true, true), ["userxattr", "index=off"]);
        assert_eq!(
            complete(&operator(&["index=on", "volatile"]), true, false),
            ["index=on", "volatile"]
        );
        assert_eq!(complete(&operator(&["userxattr"]), false, true), ["userxattr"]);
    }

    #[test]
    fn a_user_namespace_is_known_by_its_map() {
        assert!(!in_user_namespace("         0          0 4294967295\n"));
        assert!(in_user_namespace("         0       1000          1\n"));
        assert!(in_user_namespace("0 0 1000\n1000 5000 65536\n"));
    }
}
