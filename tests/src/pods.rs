//! Pods as kubelet makes them: a sandbox with a network of its own, and containers in it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tonic::Status;
use tonic::transport::Channel;

use crate::cri::proto::runtime_service_client::RuntimeServiceClient;
use crate::cri::proto::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, LinuxContainerConfig,
    LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusRequest,
    RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest,
};
use crate::cri::{connect, spec};
use crate::{prerequisites, process};

/// Where Debian puts the programs that make networks.
const PLUGINS: &str = "/usr/lib/cni";

/// How long a program in a container may take.
const EXEC_SECONDS: i64 = 120;

/// The first two numbers of the addresses that pods get.
pub const NETWORK: &str = "10.201.";

/// A bridge of this host that pods are connected to; removed when dropped.
#[derive(Debug)]
pub struct Network {
    bridge: String,
}

impl Network {
    /// Configures pods to be connected to a new bridge, in a directory where containerd looks for networks.
    ///
    /// # Errors
    /// When plugins are not installed, or nothing can be written.
    pub fn configure(directory: &Path) -> Result<Self> {
        prerequisites::command("ip", "iproute2")?;
        let number = std::process::id();
        let bridge = format!("slt{number}");
        fs::create_dir_all(directory)?;
        for plugin in ["bridge", "host-local", "loopback"] {
            let program = Path::new(PLUGINS).join(plugin);
            ensure!(
                program.is_file(),
                "{} is missing: install containernetworking-plugins",
                program.display()
            );
            symlink(program, directory.join(plugin))?;
        }
        let range = json!([[{ "subnet": format!("{NETWORK}{}.0/24", number % 256) }]]);
        let addresses =
            json!({ "type": "host-local", "dataDir": directory.join("addresses"), "ranges": range });
        let plugin = json!({ "type": "bridge", "bridge": bridge, "ipam": addresses });
        let network = json!({ "cniVersion": "0.4.0", "name": bridge, "plugins": [plugin] });
        fs::write(directory.join("10-pods.conflist"), network.to_string())?;
        Ok(Self { bridge })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // There is none when no pod was made.
        let _ = process::run(Command::new("ip").args(["link", "delete", &self.bridge]));
    }
}

/// A connection to a runtime service. Its calls, and those on pods and containers, fail as the service answers.
#[derive(Clone, Debug)]
pub struct Pods {
    inner: RuntimeServiceClient<Channel>,
}

impl Pods {
    /// Connects to a socket.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let inner = RuntimeServiceClient::new(connect(socket).await?);
        Ok(Self { inner })
    }

    /// Makes a pod whose containers log below `logs`.
    ///
    /// # Errors
    /// Those of the service.
    pub async fn run(&self, name: &str, logs: &Path) -> Result<Pod, Status> {
        let metadata = PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("{name}-{}", std::process::id()),
            namespace: "default".to_owned(),
            attempt: 0,
        };
        let config = PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.to_owned(),
            log_directory: logs.display().to_string(),
            linux: Some(LinuxPodSandboxConfig {}),
        };
        let mut client = self.inner.clone();
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
        };
        let id = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        Ok(Pod { id, config, client })
    }
}

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    id: String,
    config: PodSandboxConfig,
    client: RuntimeServiceClient<Channel>,
}

impl Pod {
    /// Its address.
    ///
    /// # Errors
    /// Those of the service, or that it has none.
    pub async fn address(&self) -> Result<String> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
        };
        let answer = self
            .client
            .clone()
            .pod_sandbox_status(request)
            .await?
            .into_inner();
        let network = answer.status.and_then(|status| status.network);
        Ok(network.context("the pod has no network")?.ip)
    }

    /// Starts a container of an image that was pulled; `attempt` tells it from earlier ones of the same name.
    ///
    /// # Errors
    /// Those of the service.
    pub async fn start(
        &self,
        image: &str,
        (name, attempt): (&str, u32),
        command: &[&str],
    ) -> Result<Container, Status> {
        let metadata = ContainerMetadata {
            name: name.to_owned(),
            attempt,
        };
        let config = ContainerConfig {
            metadata: Some(metadata),
            image: spec(image),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            log_path: format!("{name}-{attempt}.log"),
            linux: Some(LinuxContainerConfig {}),
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let mut client = self.client.clone();
        let id = client.create_container(request).await?.into_inner().container_id;
        let container_id = id.clone();
        client
            .start_container(StartContainerRequest { container_id })
            .await?;
        Ok(Container { id, client })
    }

    /// Stops the pod with all that runs in it, and removes it.
    ///
    /// # Errors
    /// Those of the service.
    pub async fn remove(mut self) -> Result<(), Status> {
        let pod_sandbox_id = self.id.clone();
        self.client
            .stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id })
            .await?;
        let pod_sandbox_id = self.id;
        self.client
            .remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id })
            .await?;
        Ok(())
    }
}

/// A container of a pod.
#[derive(Clone, Debug)]
pub struct Container {
    id: String,
    client: RuntimeServiceClient<Channel>,
}

impl Container {
    /// Runs a program in it, which has to end well; gives what it printed.
    ///
    /// # Errors
    /// Those of the service, and what the program printed when it failed.
    pub async fn exec(&self, command: &[&str]) -> Result<String> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: EXEC_SECONDS,
        };
        let answer = self.client.clone().exec_sync(request).await?.into_inner();
        let errors = String::from_utf8_lossy(&answer.stderr);
        ensure!(
            answer.exit_code == 0,
            "{command:?} ended with {}: {errors}",
            answer.exit_code
        );
        Ok(String::from_utf8(answer.stdout)?)
    }

    /// Kills and removes it.
    ///
    /// # Errors
    /// Those of the service.
    pub async fn remove(mut self) -> Result<(), Status> {
        let container_id = self.id.clone();
        let stop = StopContainerRequest {
            container_id,
            timeout: 0,
        };
        self.client.stop_container(stop).await?;
        let container_id = self.id;
        self.client
            .remove_container(RemoveContainerRequest { container_id })
            .await?;
        Ok(())
    }
}
