//! What a running containerd says of itself.

use tonic::Status;

use super::client::Client;
pub(crate) use super::proto::introspection::v1::Plugin;
use super::proto::introspection::v1::PluginsRequest;
use super::proto::introspection::v1::introspection_client::IntrospectionClient;
use super::proto::version::v1::version_client::VersionClient;

/// Type of every snapshotter.
const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";

impl Client {
    /// The version of the daemon, such as "1.6.20~ds1".
    pub(crate) async fn version(&self) -> Result<String, Status> {
        let answer = VersionClient::new(self.channel()).version(()).await?;
        Ok(answer.into_inner().version)
    }

    /// The snapshotter that it knows under this name.
    pub(crate) async fn snapshotter_plugin(&self, name: &str) -> Result<Option<Plugin>, Status> {
        let filters = vec![format!("type=={SNAPSHOTTER},id=={name}")];
        let answer = IntrospectionClient::new(self.channel())
            .plugins(PluginsRequest { filters })
            .await?;
        let plugins = answer.into_inner().plugins;
        // Not left to the filter alone: releases differ in what a filter can be.
        let is_it = |plugin: &Plugin| plugin.r#type == SNAPSHOTTER && plugin.id == name;
        Ok(plugins.into_iter().find(is_it))
    }
}
