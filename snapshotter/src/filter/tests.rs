use super::*;

struct Object(Vec<(&'static str, &'static str)>);

impl Fields for Object {
    fn field(&self, path: &[String]) -> Option<&str> {
        let path = path.join(".");
        self.0
            .iter()
            .find(|(key, _)| *key == path)
            .map(|(_, value)| *value)
    }
}

fn object() -> Object {
    Object(vec![
        ("name", "default/3/sha256:abc"),
        ("kind", "committed"),
        ("parent", ""),
        ("labels.containerd.io/snapshot.ref", "sha256:abc"),
        ("labels.very complex label\t", "a,b"),
    ])
}

fn matches(filters: &[&str]) -> bool {
    let filters: Vec<String> = filters.iter().map(|filter| (*filter).to_owned()).collect();
    Filter::parse(&filters).unwrap().matches(&object())
}

#[test]
fn filters_that_match() {
    for filter in [
        "",
        "name",
        "kind==committed, name",
        "name==default/3/sha256:abc",
        "name == default/3/sha256:abc",
        "name==\"default/3/sha256:abc\"",
        "kind==committed,labels.\"containerd.io/snapshot.ref\"==sha256:abc,parent==\"\"",
        "labels.\"containerd.io/snapshot.ref\"",
        "labels.\"very complex label\\t\"==\"a,b\"",
        "labels.\"very\\x20complex\\040label\\u0009\"",
        "kind!=active",
        "labels.absent!=x",
        "name~=/^default\\/3/",
        "name~=|sha256:[a-c]+$|",
        "name~=\"abc\"",
        "name~=abc",
        "labels.absent~=\"^$\"",
        "\"name\"==default/3/sha256:abc",
    ] {
        assert!(matches(&[filter]), "{filter}");
    }
}

#[test]
fn filters_that_do_not_match() {
    for filter in [
        "kind==active",
        "absent",
        "labels.absent",
        "labels.absent==\"\"",
        "kind==committed,parent==x",
        "kind!=committed",
        "name~=/^3/",
        "name~=/(/",
    ] {
        assert!(!matches(&[filter]), "{filter}");
    }
}

#[test]
fn any_filter_of_a_list_is_enough_and_none_means_all() {
    assert!(matches(&[]));
    assert!(matches(&["kind==active", "kind==committed"]));
    assert!(!matches(&["kind==active", "kind==view"]));
    assert!(matches(&["kind==active", ""]));
}

#[test]
fn malformed_filters_are_refused() {
    for filter in [
        "name==",
        "name=x",
        "name===x",
        "==x",
        "name==x,",
        "name..x",
        "name.",
        ",name",
        "name x",
        "name==\"x",
        "name==\"x\\q\"",
        "name==/x/",
        "name==|x|",
        "/name/==x",
        "name==x y",
        "name==x ",
        "  ",
        "labels.\"a\nb\"",
        "naïve==x",
        "name~=\"\\xff\"",
        "name==\"\\777\"",
    ] {
        let error = Filter::parse(&[filter.to_owned()]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{filter}");
    }
}

#[test]
fn an_equality_that_every_match_needs_is_known() {
    let parse = |filters: &[&str]| {
        Filter::parse(
            &filters
                .iter()
                .map(|filter| (*filter).to_owned())
                .collect::<Vec<_>>(),
        )
        .unwrap()
    };
    assert_eq!(parse(&["kind==active,parent==p"]).required("parent"), Some("p"));
    assert_eq!(parse(&["parent!=p"]).required("parent"), None);
    assert_eq!(parse(&["parent==p", "kind==view"]).required("parent"), None);
    assert_eq!(parse(&["labels.parent==p"]).required("parent"), None);
    assert_eq!(parse(&[]).required("parent"), None);
}
