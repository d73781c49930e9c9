variable "project" {
  description = "Id of the Google Cloud project."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "A project id has 6 to 30 lower-case letters, digits and hyphens, such as my-robots-1."
  }
}

variable "region" {
  description = "Where everything lies; it must have the accelerator."
  type        = string
  default     = "europe-west4"
  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]$", var.region))
    error_message = "A region, such as europe-west4 (a zone has a letter more)."
  }
}

variable "name" {
  description = "What everything is called, and begins with."
  type        = string
  default     = "flex-rl"
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "3 to 20 lower-case letters, digits and hyphens."
  }
}

variable "release_channel" {
  description = "How soon the cluster takes new versions of Kubernetes."
  type        = string
  default     = "REGULAR"
  validation {
    condition     = contains(["RAPID", "REGULAR", "STABLE"], var.release_channel)
    error_message = "RAPID, REGULAR or STABLE."
  }
}

variable "admin_networks" {
  description = "CIDR blocks that may reach the API server, by what they are. Nobody else may."
  type        = map(string)
  default     = {}
  validation {
    condition     = alltrue([for block in values(var.admin_networks) : can(cidrhost(block, 0)) && block != "0.0.0.0/0"])
    error_message = "CIDR blocks such as 203.0.113.7/32; 0.0.0.0/0 would be everybody."
  }
}

variable "cpu_pool" {
  description = "Machines without GPUs: type, and how many at most."
  type = object({
    machine_type = optional(string, "c3-standard-22")
    max_nodes    = optional(number, 10)
    spot         = optional(bool, false)
  })
  default = {}
  validation {
    condition     = var.cpu_pool.max_nodes >= 1 && var.cpu_pool.max_nodes <= 1000
    error_message = "max_nodes: 1 to 1000."
  }
}

variable "gpu_pool" {
  description = "Machines with GPUs: type, accelerator, and how many at most, on demand and as spot machines."
  type = object({
    machine_type   = optional(string, "g2-standard-8")
    accelerator    = optional(string, "nvidia-l4")
    gpus_per_node  = optional(number, 1)
    max_nodes      = optional(number, 4)
    max_spot_nodes = optional(number, 16)
  })
  default = {}
  validation {
    condition     = contains([1, 2, 4, 8], var.gpu_pool.gpus_per_node)
    error_message = "gpus_per_node: 1, 2, 4 or 8."
  }
  validation {
    condition     = min(var.gpu_pool.max_nodes, var.gpu_pool.max_spot_nodes) >= 0 && max(var.gpu_pool.max_nodes, var.gpu_pool.max_spot_nodes) <= 1000
    error_message = "max_nodes and max_spot_nodes: 0 to 1000."
  }
}

variable "workspace_days" {
  description = "Days after which an old version of a file in the bucket is deleted."
  type        = number
  default     = 30
  validation {
    condition     = var.workspace_days >= 1
    error_message = "At least one day."
  }
}

variable "dev_machine" {
  description = "A machine with one GPU to work on; null: none."
  type = object({
    machine_type = optional(string, "g2-standard-8")
    accelerator  = optional(string, "nvidia-l4")
    disk_gb      = optional(number, 200)
  })
  default = null
  validation {
    condition     = var.dev_machine == null || try(var.dev_machine.disk_gb >= 50 && var.dev_machine.disk_gb <= 65536, false)
    error_message = "disk_gb: 50 to 65536; the image of drivers and CUDA takes 50."
  }
}

variable "monthly_budget" {
  description = "Amount a month (in the billing account's currency) of which 50, 90 and 100 % are told by mail; null: none."
  type        = number
  default     = null
  validation {
    condition     = var.monthly_budget == null || try(var.monthly_budget > 0, false)
    error_message = "An amount above 0, or null."
  }
}

variable "billing_account" {
  description = "Id of the billing account; needed for monthly_budget."
  type        = string
  default     = null
  validation {
    condition     = var.billing_account == null || can(regex("^[0-9A-F]{6}-[0-9A-F]{6}-[0-9A-F]{6}$", var.billing_account))
    error_message = "Three groups of six hexadecimal digits, such as 012345-6789AB-CDEF01."
  }
}

variable "deletion_protection" {
  description = "Whether terraform destroy refuses to delete the cluster."
  type        = bool
  default     = true
}
