output "cluster" {
  description = "Name and place of the cluster; make kubeconfig reads them."
  value       = { name = google_container_cluster.main.name, location = google_container_cluster.main.location, project = var.project }
}

output "repository" {
  description = "Where images go: docker push REPOSITORY/flex-rl."
  value       = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
}

output "bucket" {
  description = "The workspace's bucket."
  value       = google_storage_bucket.workspace.name
}

output "train_service_account" {
  description = "Who trainings are; the annotation iam.gke.io/gcp-service-account of flex-rl-train."
  value       = google_service_account.train.email
}

output "workspace" {
  description = "The workspace's disk as Kubernetes wants it; make kubeconfig applies it."
  value       = templatefile("${path.module}/../k8s/workspace_gke.yaml", { network = google_compute_network.main.name })
}

output "archive" {
  description = "What copies the workspace into the bucket every night; make archive applies it."
  value       = templatefile("${path.module}/../k8s/archive_gke.yaml", { bucket = google_storage_bucket.workspace.name })
}

output "network" {
  description = "Where the workspace's disk lies; make cloud-down looks for it there."
  value       = google_compute_network.main.name
}
